package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/waybillhq/waybill/internal/cli"
	"github.com/waybillhq/waybill/internal/expect"
)

func (p *plant) args(args ...string) []string {
	return append(args, "--database-url", p.url, "--nats-url", p.nats.URL(), "--lanes=4")
}

// expect runs waybill expect on the plant.
func (p *plant) expect(t *testing.T, args ...string) (expect.Progress, error) {
	t.Helper()
	r := command(t, nil, p.args(append([]string{"expect", "-o", "json"}, args...)...)...)
	var e expect.Progress
	if err := json.Unmarshal([]byte(r.out), &e); err != nil {
		t.Fatalf("%v: %+v", err, r)
	}
	if negative := (cli.NegativeError{}); r.failure != nil && !errors.As(r.failure, &negative) {
		t.Errorf("the command failed itself: %v", r.failure)
	}
	return e, r.failure
}

// It begins before the events do, counts those that match and no others, and ends as soon as they have
// reached every sink.
func TestExpectWaitsForDeliveries(t *testing.T) {
	p := mustPlant(t)
	in := p.startIngest(t, testSpec.Lanes, time.Hour)
	p.startJanitor(t, testSpec.Lanes)
	mustAccept(t, in, "before", 5)
	w := start(t, t.TempDir(), nil, p.args("expect", "--source=/source/*", "--type=t", "--count=20", "--within=2m")...)
	w.awaitText(t, `ready`)
	mustAccept(t, in, "after", 20)
	p.startForwarder(t, testSpec.Lanes)
	out, code := w.await(t)
	if code != 0 || !strings.Contains(out, "20 of 20 events delivered to archive and ingress after ") {
		t.Errorf("status %d: %s", code, out)
	}
	for i := range 20 {
		if n := p.ingress.times(fmt.Sprintf("after-%d", i)); n != 1 {
			t.Errorf("after-%d had arrived %d times when it ended", i, n)
		}
	}
	// What came before counts where it is asked for.
	if e, err := p.expect(t, "--since=10m", "--count=25", "--within=1m"); err != nil || !e.Met || e.Delivered != 25 || e.Seen != 25 {
		t.Errorf("%+v, %v", e, err)
	}
	if e, err := p.expect(t, "--since=10m", "--id=after-7", "--sink=ingress"); err != nil || e.Delivered != 1 || e.Sinks[0] != "ingress" {
		t.Errorf("%+v, %v", e, err)
	}
	e, err := p.expect(t, "--since=10m", "--count=26", "--within=1s")
	mustFail(t, result{failure: err}, "not met within 1s", "25 of 26 events delivered", "25 that match came")
	if e.Met || e.Delivered != 25 || e.Seconds < 1 {
		t.Errorf("%+v", e)
	}
	if e, err := p.expect(t, "--since=10m", "--type=other", "--within=1s"); err == nil || e.Seen != 0 {
		t.Errorf("%+v, %v", e, err)
	}
	w = start(t, t.TempDir(), nil, p.args("expect", "--within=300ms")...)
	if out, code := w.await(t); code != 3 || !strings.Contains(out, "--since") {
		t.Errorf("status %d: %s", code, out)
	}
}

// What one sink lacks, or refused, is no delivery, and it is said which.
func TestExpectSaysWhatLacks(t *testing.T) {
	p := mustPlant(t)
	in := p.startIngest(t, testSpec.Lanes, time.Hour)
	if r := p.lanes(t, "pause", "--sink=ingress"); r.failure != nil {
		t.Fatal(r.failure)
	}
	p.startForwarder(t, testSpec.Lanes)
	mustAccept(t, in, "e", 10)
	p.startJanitor(t, testSpec.Lanes)
	if e, err := p.expect(t, "--since=10m", "--count=10", "--sink=archive", "--within=1m"); err != nil || e.Delivered != 10 {
		t.Errorf("%+v, %v", e, err)
	}
	// They expire now and not by the clock, which could come before the archive has them.
	mustExec(t, p.url, `UPDATE waybill.batches SET expires_at = now() - interval '1 second'`)
	eventually(t, programLimit, "they are dead letters", func() bool {
		return mustCount(t, p.url, `SELECT count(*) FROM waybill.dead_letters WHERE sink = 'ingress'`) == 10
	})
	e, err := p.expect(t, "--since=10m", "--count=10", "--within=1s")
	mustFail(t, result{failure: err}, "0 of 10 events delivered", "10 events are dead letters of ingress")
	if e.Dead["ingress"] != 10 || e.Dead["archive"] != 0 {
		t.Errorf("%+v", e)
	}
	// Queued again they wait, and delivered they count.
	if r := command(t, nil, "deadletters", "requeue", "--all", "--database-url", p.url, "--lanes=4"); r.failure != nil {
		t.Fatal(r.failure)
	}
	if e, err := p.expect(t, "--since=10m", "--count=10", "--within=1s"); err == nil || e.Waiting["ingress"]+e.Dead["ingress"] != 10 {
		t.Errorf("%+v, %v", e, err)
	}
	if r := p.lanes(t, "resume", "--sink=ingress"); r.failure != nil {
		t.Fatal(r.failure)
	}
	if e, err := p.expect(t, "--since=10m", "--count=10", "--within=1m"); err != nil || e.Delivered != 10 || e.Seen != 10 {
		t.Errorf("%+v, %v", e, err)
	}
}

// An event that one sink refused, and took when it was queued again, may wait for another one all the
// while.
func TestExpectKnowsAllBatchesOfAnEvent(t *testing.T) {
	p := mustPlant(t)
	in := p.startIngest(t, testSpec.Lanes, time.Hour)
	p.ingress.refuse(true)
	if r := p.lanes(t, "pause", "--sink=archive"); r.failure != nil {
		t.Fatal(r.failure)
	}
	p.startForwarder(t, testSpec.Lanes)
	p.startJanitor(t, testSpec.Lanes)
	mustAccept(t, in, "e", 3)
	eventually(t, programLimit, "they are dead letters", func() bool {
		return mustCount(t, p.url, `SELECT count(*) FROM waybill.dead_letters WHERE sink = 'ingress'`) == 3
	})
	p.ingress.refuse(false)
	if r := command(t, nil, "deadletters", "requeue", "--all", "--database-url", p.url, "--lanes=4"); r.failure != nil {
		t.Fatal(r.failure)
	}
	eventually(t, programLimit, "they arrive", func() bool { return p.ingress.total() == 3 })
	if e, err := p.expect(t, "--since=10m", "--count=3", "--sink=ingress", "--within=1m"); err != nil || e.Delivered != 3 {
		t.Errorf("%+v, %v", e, err)
	}
	if e, err := p.expect(t, "--since=10m", "--count=1", "--within=3s"); err == nil || e.Met || e.Delivered != 0 || e.Seen != 3 || e.Waiting["archive"] != 3 {
		t.Errorf("the archive has none of them: %+v, %v", e, err)
	}
	if r := p.lanes(t, "resume", "--sink=archive"); r.failure != nil {
		t.Fatal(r.failure)
	}
	if e, err := p.expect(t, "--since=10m", "--count=3", "--within=1m"); err != nil || e.Delivered != 3 {
		t.Errorf("%+v, %v", e, err)
	}
}

func TestExpectRefusesWhatCannotBe(t *testing.T) {
	p := mustPlant(t)
	mustFail(t, command(t, nil, p.args("expect", "--sink=nosuch")...), "--sink", `"nosuch"`, "archive, ingress")
	mustFail(t, command(t, nil, p.args("expect", "--count=0")...), "--count: 0")
	mustFail(t, command(t, nil, p.args("expect", "--within=0s")...), "--within: 0s")
}

// tail prints what matches, as it comes, and what is still kept where that is asked for.
func TestTail(t *testing.T) {
	p := mustPlant(t)
	in := p.startIngest(t, testSpec.Lanes, time.Hour)
	p.startJanitor(t, testSpec.Lanes)
	mustAccept(t, in, "before", 6)
	w := start(t, t.TempDir(), nil, "tail", "--nats-url", p.nats.URL(), "--source=/source/1*", "--limit=3")
	w.awaitText(t, "reading")
	mustAccept(t, in, "after", 12) // of which /source/1, /source/10 and /source/11 match
	out, code := w.await(t)
	if code != 0 || strings.Contains(out, "before") || !strings.Contains(out, "after-1  seqnum 2") || !strings.Contains(out, "after-10  seqnum 1") || strings.Count(out, "  lane 0") != 3 {
		t.Errorf("status %d: %s", code, out)
	}
	r := command(t, nil, "tail", "--nats-url", p.nats.URL(), "--since=10m", "--id=before-3", "--limit=1", "-o", "json")
	var s streamedEvent
	if err := json.Unmarshal([]byte(r.out), &s); err != nil || r.failure != nil || s.Seq == 0 || s.Position == 0 || s.Attempt != 0 || !strings.Contains(string(s.Event), `"id":"before-3"`) {
		t.Errorf("%v: %+v", err, r)
	}
	w = start(t, t.TempDir(), nil, "tail", "--nats-url", p.nats.URL())
	w.awaitText(t, "reading")
	if err := w.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if out, code := w.await(t); code != 0 {
		t.Errorf("status %d: %s", code, out)
	}
	mustFail(t, command(t, nil, "tail", "--show-data"), "-o json")
	mustFail(t, command(t, nil, "tail", "--nats-url=nats://127.0.0.1:1"), "WAYBILL_NATS_URL")
}
