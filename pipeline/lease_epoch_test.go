package pipeline

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Leases of a bucket that was made anew, or taken back, are taken only when those of the former
// one must have ended. The first bucket a forwarder sees keeps nobody waiting, unless it stands
// in for another.
func TestLeasesOfANewBucketAreLeftAloneForATTL(t *testing.T) {
	var e leaseEpoch
	start := time.Now()
	first, second, third := start.Add(-time.Hour), start.Add(time.Second), start.Add(20*time.Second)
	for _, look := range []struct {
		after   time.Duration
		created time.Time
		last    uint64
		again   bool
		wait    bool
	}{
		{0, first, 10, false, false},
		{time.Second, first, 12, false, false},
		{2 * time.Second, second, 1, false, true},
		{7 * time.Second, second, 5, false, true},
		{8 * time.Second, second, 5, false, false},
		{9 * time.Second, first, 9, false, true}, // restored: another one again
		{15 * time.Second, first, 20, false, false},
		{16 * time.Second, first, 19, false, true}, // taken back
		{22 * time.Second, first, 25, false, false},
		{25 * time.Second, third, 1, true, true},
		{31 * time.Second, third, 2, true, false},
	} {
		if got := e.see(leaseBucket(look.created, look.last, look.again, start.Add(look.after)), start.Add(look.after), 6*time.Second); got != look.wait {
			t.Errorf("after %v: wait %v, want %v", look.after, got, look.wait)
		}
	}
	for _, first := range []struct {
		age         time.Duration
		again, wait bool
	}{{0, false, false}, {0, true, true}, {5 * time.Second, true, true}, {6 * time.Second, true, false}} {
		var e leaseEpoch
		// By the server's clock, which may be far from this one's.
		info := leaseBucket(start.Add(-time.Hour), 1, first.again, start.Add(-time.Hour+first.age))
		if got := e.see(info, start, 6*time.Second); got != first.wait {
			t.Errorf("the first look, at a bucket of %v (again: %v): wait %v, want %v", first.age, first.again, got, first.wait)
		}
	}
}

func leaseBucket(created time.Time, last uint64, again bool, now time.Time) *jetstream.StreamInfo {
	info := &jetstream.StreamInfo{Created: created, TimeStamp: now}
	info.State.LastSeq = last
	if again {
		info.Config.Metadata = map[string]string{againMetadata: "true"}
	}
	return info
}

// A forwarder that starts when the bucket was just made again never saw the former one, whose
// holders may still be at work.
func TestForwarderThatStartsWaitsOutTheLeasesOfALostBucket(t *testing.T) {
	t.Parallel()
	s := mustSite(t, 1, "ingress")
	if err := s.queue.js.DeleteKeyValue(t.Context(), leasesBucket); err != nil {
		t.Fatal(err)
	}
	if err := s.queue.ensureAll(t.Context(), s.cfg, 1, true); err != nil {
		t.Fatal(err)
	}
	kv, err := s.queue.js.Stream(t.Context(), "KV_"+leasesBucket)
	if err != nil {
		t.Fatal(err)
	}
	s.mustForwarder(t, s.queue, "a", nil, newRecorder("ingress"))
	var holders map[SinkLane]LeaseHolder
	eventually(t, patience, "the lane is taken from the new bucket", func() bool {
		var err error
		holders, err = LaneHolders(t.Context(), s.queue)
		return err == nil && len(holders) == 1
	})
	// The server of the test has this process's clock.
	if age := holders[SinkLane{"ingress", 0}].Since.Sub(kv.CachedInfo().Created); age < s.cfg.LeaseTTL {
		t.Errorf("the lane was taken %v after the bucket was made, want at least %v", age, s.cfg.LeaseTTL)
	}
	s.mustSend(t, 1)
	s.mustSettle(t, patience)
}

// A forwarder whose lane was lost with the bucket takes it again, after the wait.
func TestForwarderWaitsOutTheLeasesOfALostBucket(t *testing.T) {
	t.Parallel()
	s := mustSite(t, 1, "ingress")
	r := newRecorder("ingress")
	s.mustForwarder(t, s.queue, "a", nil, r)
	s.mustSend(t, 1)
	s.mustSettle(t, patience)
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
	eventually(t, patience, "the lane is taken from the new bucket", func() bool {
		holders, err := LaneHolders(t.Context(), s.queue)
		return err == nil && len(holders) == 1
	})
	if waited := time.Since(lost); waited < ttl {
		t.Errorf("the lane was taken after %v, before the former lease must have ended (%v)", waited, ttl)
	}
	s.mustSend(t, 1)
	s.mustSettle(t, patience)
}

// What a janitor finds missing of a pipeline that runs was there before; what is created first
// was not.
func TestJanitorSaysThatItMadeTheLeasesBucketAgain(t *testing.T) {
	r := mustRig(t)
	bucket := func() *jetstream.StreamInfo {
		stream, err := r.queue.js.Stream(t.Context(), "KV_"+leasesBucket)
		if err != nil {
			return nil
		}
		return stream.CachedInfo()
	}
	first := bucket()
	if first.Config.Metadata[againMetadata] != "" {
		t.Error("the first bucket passes for another's successor")
	}
	if err := r.queue.js.DeleteKeyValue(t.Context(), leasesBucket); err != nil {
		t.Fatal(err)
	}
	r.mustJanitor(t, nil)
	eventually(t, patience, "the bucket is there again, and says so", func() bool {
		b := bucket()
		return b != nil && !b.Created.Equal(first.Created) && b.Config.Metadata[againMetadata] != ""
	})
}
