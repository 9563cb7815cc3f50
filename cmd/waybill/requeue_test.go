package main

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/waybillhq/waybill/pipeline"
)

// An operator requeues events that expired while they were still queued: their messages are
// un-acked, and forwarders deliver them within the margin of expiry. The archive has each
// once, the endpoint at least once, and the letters end cleared, whichever copy comes first.
func TestRequeueWhatIsStillQueued(t *testing.T) {
	for name, wait := range map[string]bool{"the original comes first": false, "both are queued": true} {
		t.Run(name, func(t *testing.T) {
			p := mustPlant(t)
			in := p.startIngest(t, testSpec.Lanes, 500*time.Millisecond)
			p.startJanitor(t, testSpec.Lanes)
			mustAccept(t, in, "e", 20)
			store := p.store(t, testSpec.Lanes)
			count := func() int { return mustCount(t, p.url, `SELECT count(*) FROM waybill.dead_letters`) }
			eventually(t, programLimit, "all expire", func() bool { return count() == 2*20 })
			if r := letters(t, p.url, "requeue", "--all"); r.out[:2] != "40" {
				t.Fatalf("%+v", r)
			}
			if wait {
				eventually(t, programLimit, "the copies are published", func() bool {
					return mustCount(t, p.url, `SELECT count(*) FROM waybill.batches WHERE attempts = 0`) == 0
				})
			}
			p.startForwarder(t, testSpec.Lanes)
			eventually(t, programLimit, "no dead letter is left", func() bool { return count() == 0 })
			p.mustDrain(t, store)
			p.mustHold(t, 20)
			if n := p.ingress.times("e-0"); wait && n != 2 {
				t.Errorf("the endpoint got the event %d times, want the original and the copy", n)
			}
			for _, kind := range []string{pipeline.KindIngest, pipeline.KindForwarder, pipeline.KindJanitor} {
				p.stop(t, kind)
			}
		})
	}
}

// The archive has events that Waybill takes for expired, because their receipts were lost with
// JetStream. Then the lanes shrink, and an operator requeues them: through other lanes, and the
// archive has each once all the same.
func TestRequeueAfterTheLanesShrank(t *testing.T) {
	p := mustPlant(t)
	in := p.startIngest(t, testSpec.Lanes, 500*time.Millisecond)
	p.startJanitor(t, testSpec.Lanes)
	mustAccept(t, in, "e", 60)
	eventually(t, programLimit, "all expire", func() bool {
		return mustCount(t, p.url, `SELECT count(*) FROM waybill.dead_letters`) == 2*60
	})
	p.stop(t, pipeline.KindIngest, pipeline.KindJanitor)
	p.startForwarder(t, testSpec.Lanes)
	eventually(t, programLimit, "the archive has them", func() bool {
		n := 0
		for _, records := range p.archived(t) {
			n += len(records)
		}
		return n == 60
	})
	p.stop(t, pipeline.KindForwarder)
	p.mustLoseReceipts(t)
	if r := p.migrate(t, 1, "--change-lanes"); r.failure != nil {
		t.Fatal(r.failure)
	}
	p.startJanitor(t, 1)
	p.startForwarder(t, 1)
	r := command(t, nil, "deadletters", "requeue", "--database-url", p.url, "--lanes=1", "--sink=archive")
	if r.failure != nil || r.out[:2] != "60" {
		t.Fatalf("%+v", r)
	}
	eventually(t, programLimit, "the archive's letters are cleared", func() bool {
		return mustCount(t, p.url, `SELECT count(*) FROM waybill.dead_letters WHERE sink = 'archive'`) == 0
	})
	p.mustHold(t, 60)
}

func (p *plant) mustLoseReceipts(t *testing.T) {
	t.Helper()
	nc, err := nats.Connect(p.nats.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(t.Context(), pipeline.ReceiptsStream)
	if err != nil {
		t.Fatal(err)
	}
	if stream.CachedInfo().State.Msgs == 0 {
		t.Fatal("there are no receipts to lose")
	}
	if err := stream.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
}
