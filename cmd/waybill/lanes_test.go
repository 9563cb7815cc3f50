package main

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/pipeline"
)

// mustAccept sends n events of 40 keys.
func mustAccept(t *testing.T, in *pipeline.Ingester, prefix string, n int) {
	t.Helper()
	for i := range n {
		e, err := pipeline.NewEvent(&pb.CloudEvent{
			Id: fmt.Sprintf("%s-%d", prefix, i), Source: fmt.Sprintf("/source/%d", i%40), Type: "t", SpecVersion: "1.0",
		}, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if err := in.Accept(t.Context(), []pipeline.Event{e}); err != nil {
			t.Fatal(err)
		}
	}
}

// mustDrain waits until nothing is pending, and that the receipts are settled, which is the
// moment before.
func (p *plant) mustDrain(t *testing.T, store *pipeline.Store) {
	t.Helper()
	eventually(t, programLimit, "everything is settled", func() bool {
		survey, err := store.Survey(t.Context())
		return err == nil && len(survey.Backlogs) == 0
	})
}

// The number of lanes grows and shrinks again, with events before, between and after. Each is
// in the archive once, the offsets of each lane go on, and so do the seqnums; the lanes that
// are no more keep their objects; and nobody starts with the number of before.
// Without --sinks a pipeline keeps those that it has, also where its lanes are changed.
func TestMigrateAddsNoSinkByItself(t *testing.T) {
	p := mustPlant(t)
	conn, err := pgx.Connect(t.Context(), p.url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	if _, err := conn.Exec(t.Context(), `DELETE FROM waybill.sinks WHERE name = 'archive'`); err != nil {
		t.Fatal(err)
	}
	if r := p.migrate(t, testSpec.Lanes); r.failure != nil || !strings.Contains(r.out, "sinks ingress\n") {
		t.Errorf("%+v", r)
	}
	if r := p.migrate(t, testSpec.Lanes, "--sinks=archive"); r.failure != nil || !strings.Contains(r.out, "sinks archive, ingress\n") {
		t.Errorf("%+v", r)
	}
}

func TestChangeLanes(t *testing.T) {
	p := mustPlant(t)
	sent := 0
	lanes := testSpec.Lanes
	var before map[int]int // events by lane
	for i, next := range []int{16, 4, 4} {
		in := p.startIngest(t, lanes, time.Hour)
		p.startJanitor(t, lanes)
		p.startForwarder(t, lanes)
		mustAccept(t, in, fmt.Sprintf("round%d", i), 200)
		sent += 200
		store := p.store(t, lanes)
		p.mustDrain(t, store)
		counts := p.mustHold(t, sent)
		for lane, n := range before {
			if counts[lane] < n || lane >= lanes && counts[lane] != n {
				t.Errorf("round %d: lane %d has %d events and had %d", i, lane, counts[lane], n)
			}
		}
		before = counts
		if r := p.migrate(t, next, "--change-lanes"); next != lanes {
			mustFail(t, r, "ingest it is alive", "stop it")
		} else if r.failure != nil {
			t.Errorf("nothing to do: %v", r.failure)
		}
		p.stop(t, "ingest", "forwarder", "janitor")
		r := p.migrate(t, next, "--change-lanes")
		if r.failure != nil || next != lanes && !strings.Contains(r.out, fmt.Sprintf("lanes: %d before, %d now; set WAYBILL_LANES=%d", lanes, next, next)) {
			t.Fatalf("%+v", r)
		}
		if next != lanes {
			p.mustRefuse(t, lanes, next)
		}
		lanes = next
	}
	if len(before) <= 4 {
		t.Errorf("the archive has events in %d lanes: those of the sixteen are gone", len(before))
	}
	// What the stream still has of lanes that are no more can be looked at, and nothing new comes there.
	count, former, err := p.queue(t).Lanes(t.Context())
	if err != nil || count != 4 || len(former) == 0 || former[0] < 4 || former[len(former)-1] > 15 {
		t.Fatalf("%d lanes, formerly %v, %v", count, former, err)
	}
	lane := fmt.Sprintf("--lane=%d", former[0])
	if r := command(t, nil, "tail", "--nats-url", p.nats.URL(), lane, "--since=1h", "--limit=1"); r.failure != nil || !strings.Contains(r.out, fmt.Sprintf("lane %02d", former[0])) {
		t.Errorf("%+v", r)
	}
	if r := command(t, nil, "replay", "--sink=ingress", "--dry-run", "--from=stream", "--nats-url", p.nats.URL(), lane); r.failure != nil || strings.HasPrefix(r.out, "0 ") {
		t.Errorf("%+v", r)
	}
	mustFail(t, command(t, nil, "tail", "--nats-url", p.nats.URL(), lane), lane[2:6]+": ", "the pipeline has the lanes 0 to 3")
}

// mustHold checks that the archive has each of n events once, and that the seqnums of each key
// are 1, 2, …. It returns the number of events by lane.
func (p *plant) mustHold(t *testing.T, n int) map[int]int {
	t.Helper()
	ids := map[string]int{}
	most, count := map[string]int64{}, map[string]int64{}
	counts := map[int]int{}
	for lane, records := range p.archived(t) {
		counts[lane] = len(records)
		for _, r := range records {
			ids[r.ID]++
			count[r.Source]++
			most[r.Source] = max(most[r.Source], r.Seqnum)
		}
	}
	for id, times := range ids {
		if times != 1 || p.ingress.times(id) < 1 {
			t.Errorf("%s is in the archive %d times, and the endpoint got it %d times", id, times, p.ingress.times(id))
		}
	}
	for key, last := range most {
		if last != count[key] {
			t.Errorf("%s has %d events and its last seqnum is %d", key, count[key], last)
		}
	}
	if len(ids) != n {
		t.Errorf("the archive has %d events, want %d", len(ids), n)
	}
	return counts
}

// mustRefuse checks that what is configured for the number of before does not start.
func (p *plant) mustRefuse(t *testing.T, before, now int) {
	t.Helper()
	remedy := fmt.Sprintf("WAYBILL_LANES=%d", now)
	if s, err := openStore(t.Context(), p.url, before); err == nil || !strings.Contains(err.Error(), remedy) {
		t.Errorf("ingest or janitor: %v", err)
		if s != nil {
			s.Close()
		}
	}
	if r := p.migrate(t, before); r.failure == nil || !strings.Contains(r.failure.Error(), remedy) {
		t.Errorf("migrate: %v", r.failure)
	}
	ctx, cancel := context.WithTimeout(t.Context(), programLimit)
	defer cancel()
	if err := p.queue(t).Check(ctx, before, 0); err == nil || !strings.Contains(err.Error(), "WAYBILL_LANES") {
		t.Errorf("forwarder: %v", err)
	}
}
