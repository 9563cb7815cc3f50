package pipeline

import (
	"testing"
	"time"
)

// Leases of a bucket that was made anew are taken only when those of the former one must
// have ended. The first bucket a forwarder sees keeps nobody waiting.
func TestLeasesOfANewBucketAreLeftAloneForATTL(t *testing.T) {
	var e leaseEpoch
	start := time.Now()
	first, second := start.Add(-time.Hour), start.Add(time.Second)
	for _, look := range []struct {
		after   time.Duration
		created time.Time
		wait    bool
	}{
		{0, first, false},
		{time.Second, first, false},
		{2 * time.Second, second, true},
		{7 * time.Second, second, true},
		{8 * time.Second, second, false},
		{9 * time.Second, first, true}, // restored: another one again
	} {
		if got := e.see(look.created, start.Add(look.after), 6*time.Second); got != look.wait {
			t.Errorf("after %v: wait %v, want %v", look.after, got, look.wait)
		}
	}
}

// A forwarder whose lane was lost with the bucket takes it again, after the wait.
func TestForwarderWaitsOutTheLeasesOfALostBucket(t *testing.T) {
	s := mustSite(t, 1, "ingress")
	r := newRecorder("ingress")
	s.mustForwarder(t, s.queue, "a", nil, r)
	s.mustSend(t, 1)
	s.mustSettle(t, 20*time.Second)
	if err := s.queue.js.DeleteKeyValue(t.Context(), leasesBucket); err != nil {
		t.Fatal(err)
	}
	lost := time.Now()
	if err := s.queue.ensureStreams(t.Context(), s.cfg, 1); err != nil {
		t.Fatal(err)
	}
	_, ttl, err := s.queue.bucket(t.Context(), leasesBucket)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, "the lane is taken from the new bucket", func() bool {
		holders, err := LaneHolders(t.Context(), s.queue)
		return err == nil && len(holders) == 1
	})
	if waited := time.Since(lost); waited < ttl {
		t.Errorf("the lane was taken after %v, before the former lease must have ended (%v)", waited, ttl)
	}
	s.mustSend(t, 1)
	s.mustSettle(t, 20*time.Second)
}
