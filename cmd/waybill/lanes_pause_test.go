package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/waybillhq/waybill/internal/cli"
)

// lanesOf runs waybill lanes with the plant's servers.
func (p *plant) lanes(t *testing.T, args ...string) result {
	t.Helper()
	return command(t, nil, append(append([]string{"lanes"}, args...), "--database-url", p.url, "--nats-url", p.nats.URL(), "--lanes=4")...)
}

// laneStates is what waybill lanes -o json says, by sink and lane.
func (p *plant) laneStates(t *testing.T) map[string]laneState {
	t.Helper()
	r := p.lanes(t, "-o", "json")
	if r.failure != nil {
		t.Fatal(r.failure)
	}
	out := map[string]laneState{}
	for line := range strings.Lines(r.out) {
		var s laneState
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			t.Fatal(err)
		}
		out[fmt.Sprintf("%s %d", s.Sink, s.Lane)] = s
	}
	return out
}

// While a sink is paused its backlog waits, nothing of it is retransmitted however often the janitor
// looks, and what expires is a dead letter. Resumed, each event arrives once.
func TestPausedSinkKeepsItsQueue(t *testing.T) {
	p := mustPlant(t)
	in := p.startIngest(t, testSpec.Lanes, time.Hour)
	p.startJanitor(t, testSpec.Lanes)
	p.startForwarder(t, testSpec.Lanes)
	eventually(t, programLimit, "all lanes are held", func() bool {
		for _, s := range p.laneStates(t) {
			if s.Forwarder == "" {
				return false
			}
		}
		return true
	})
	if r := p.lanes(t, "pause", "--sink=ingress", "--reason=a new endpoint"); r.failure != nil || !strings.Contains(r.out, "all lanes of ingress are paused") {
		t.Fatalf("%+v", r)
	}
	mustAccept(t, in, "before", 200)
	eventually(t, programLimit, "the archive has all", func() bool {
		return mustCount(t, p.url, `SELECT count(*) FROM waybill.batches WHERE 'archive' = ANY(waiting_for)`) == 0
	})
	// Long enough for several passes that look for what is stale.
	began := time.Now()
	eventually(t, programLimit, "time passes", func() bool { return time.Since(began) > 2*testGrace+time.Second })
	if n := mustCount(t, p.url, `SELECT coalesce(max(attempts), 0) FROM waybill.batches`); n != 0 {
		t.Errorf("a batch was retransmitted %d times while it was queued for a paused sink", n)
	}
	waiting := int64(0)
	for key, s := range p.laneStates(t) {
		paused := s.Sink == "ingress"
		if s.Paused != paused || paused == (s.Forwarder != "") || s.Floor == nil {
			t.Errorf("%s: %+v", key, s)
		}
		if paused && (s.Reason != "a new endpoint" || s.Events > 0 && (s.Oldest < 2*testGrace.Seconds() || *s.Queued != uint64(s.Batches) || s.ExpiresIn == nil)) {
			t.Errorf("%s: %+v", key, s)
		}
		waiting += s.Events
	}
	if waiting != 200 || p.ingress.total() != 0 {
		t.Errorf("%d events wait, and the endpoint got %d", waiting, p.ingress.total())
	}
	status := command(t, nil, "status", "--database-url", p.url, "--nats-url", p.nats.URL(), "--lanes=4")
	if !strings.Contains(status.out, ": a new endpoint") || !strings.Contains(status.out, "sink ingress is paused since") {
		t.Errorf("the status does not tell of it:\n%s", status.out)
	}
	if text := p.lanes(t); text.failure != nil || !strings.Contains(text.out, "paused: a new endpoint") {
		t.Errorf("%+v", text)
	}
	if r := p.lanes(t, "resume", "--sink=ingress"); r.failure != nil || !strings.Contains(r.out, "nothing of ingress is paused") {
		t.Fatalf("%+v", r)
	}
	p.mustDrain(t, p.store(t, testSpec.Lanes))
	for i := range 200 {
		if n := p.ingress.times(fmt.Sprintf("before-%d", i)); n != 1 {
			t.Errorf("before-%d arrived %d times", i, n)
		}
	}
	p.mustHold(t, 200)
}

// A pause stops no clock: what is past its TTL is a dead letter of the paused sink alone, with the
// event, and can be sent again.
func TestPausedEventsExpireIntoDeadLetters(t *testing.T) {
	p := mustPlant(t)
	in := p.startIngest(t, testSpec.Lanes, 15*time.Second) // enough for the archive, on a loaded machine too
	p.startForwarder(t, testSpec.Lanes)
	p.startJanitor(t, testSpec.Lanes)
	if r := p.lanes(t, "pause", "--sink=ingress", "-o", "json"); r.failure != nil || !strings.Contains(r.out, `"sink":"ingress","all":{"since":`) {
		t.Fatalf("%+v", r)
	}
	eventually(t, programLimit, "the lanes of the archive are held", func() bool {
		for _, s := range p.laneStates(t) {
			if s.Sink == "archive" && s.Forwarder == "" {
				return false
			}
		}
		return true
	})
	mustAccept(t, in, "e", 20)
	eventually(t, programLimit, "they are dead letters", func() bool {
		return mustCount(t, p.url, `SELECT count(*) FROM waybill.dead_letters WHERE sink = 'ingress' AND code = 'expired'`) == 20
	})
	if n := mustCount(t, p.url, `SELECT count(*) FROM waybill.dead_letters WHERE sink <> 'ingress'`); n != 0 || p.ingress.total() != 0 {
		t.Errorf("%d dead letters are another sink's, and the endpoint got %d events", n, p.ingress.total())
	}
	if r := p.lanes(t, "resume", "--sink=ingress"); r.failure != nil {
		t.Fatalf("%+v", r)
	}
	// They were still queued, and within the margin for clocks that differ: they arrive late.
	eventually(t, programLimit, "they arrive", func() bool {
		return mustCount(t, p.url, `SELECT count(*) FROM waybill.dead_letters WHERE delivered_late_at IS NOT NULL`) == 20
	})
	for i := range 20 {
		if n := p.ingress.times(fmt.Sprintf("e-%d", i)); n != 1 {
			t.Errorf("e-%d arrived %d times", i, n)
		}
	}
}

// What cannot be done is said with what there is, and what was noted without effect yet.
func TestLanesThatCannotBePaused(t *testing.T) {
	p := mustPlant(t)
	mustFail(t, p.lanes(t, "pause", "--sink=nosuch"), "--sink", `"nosuch"`, "archive, ingress")
	mustFail(t, p.lanes(t, "pause", "--sink=ingress", "--lane=4"), "--lane: 4", "0 to 3")
	for _, wrong := range []result{
		p.lanes(t, "pause", "--sink=nosuch"), p.lanes(t, "ls", "--lane=4"),
		command(t, nil, "tail", "--nats-url", p.nats.URL(), "--lane=1,4"),
		command(t, nil, "replay", "--sink=ingress", "--dry-run", "--from=stream", "--nats-url", p.nats.URL(), "--lane=4"),
		command(t, nil, "deadletters", "requeue", "--database-url", p.url, "--lanes=4", "--sink=nosuch"),
	} {
		if of := (cli.WrongError{}); !errors.As(wrong.failure, &of) || !strings.Contains(wrong.failure.Error(), "; the pipeline has ") {
			t.Errorf("it is not refused as wrong: %+v", wrong)
		}
	}
	mustFail(t, p.lanes(t, "pause"), "--sink")
	if r := p.lanes(t, "pause", "--sink=ingress", "--lane=1,2"); r.failure != nil || !strings.Contains(r.out, "paused of ingress: lanes 1-2") {
		t.Errorf("%+v", r)
	}
	// Nobody runs that could take them again.
	r := p.lanes(t, "resume", "--sink=ingress", "--lane=1", "--wait=100ms")
	mustFail(t, r, "noted", "--wait=100ms")
	if !strings.Contains(r.err, "lanes 1: no forwarder has taken them") || !strings.Contains(r.out, "lanes 2") {
		t.Errorf("%+v", r)
	}
	if r := p.lanes(t, "resume", "--sink=ingress", "--lane=2", "--wait=0s"); r.failure != nil {
		t.Errorf("%+v", r)
	}
	// The number of lanes does not change under a pause of single ones.
	if r := p.lanes(t, "pause", "--sink=archive", "--lane=3"); r.failure != nil {
		t.Fatal(r.failure)
	}
	mustFail(t, p.migrate(t, 8, "--change-lanes"), "lanes of archive are paused", "waybill lanes resume --sink archive")
}
