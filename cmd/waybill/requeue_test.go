package main

import (
	"testing"
	"time"

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
			count := func() (n int64) {
				letters, err := store.DeadLetters(t.Context(), 1000)
				if err != nil {
					return -1
				}
				for _, c := range letters {
					n += c
				}
				return n
			}
			eventually(t, 20*time.Second, "all expire", func() bool { return count() == 2*20 })
			if r := letters(t, p.url, "requeue", "--all"); r.out[:2] != "40" {
				t.Fatalf("%+v", r)
			}
			if wait {
				eventually(t, 20*time.Second, "the copies are published", func() bool {
					return mustCount(t, p.url, `SELECT count(*) FROM waybill.batches WHERE attempts = 0`) == 0
				})
			}
			p.startForwarder(t, testSpec.Lanes)
			eventually(t, 30*time.Second, "no dead letter is left", func() bool { return count() == 0 })
			p.mustDrain(t, store)
			p.mustHold(t, 20)
			for _, kind := range []string{pipeline.KindIngest, pipeline.KindForwarder, pipeline.KindJanitor} {
				p.stop(t, kind)
			}
		})
	}
}
