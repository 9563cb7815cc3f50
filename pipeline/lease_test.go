package pipeline

import (
	"context"
	"errors"
	"testing"
	"time"
)

func mustLeases(t testing.TB, ttl time.Duration) (*Queue, leaseKV) {
	t.Helper()
	n := mustNATS(t)
	q, _ := mustQueue(t, n)
	cfg := DefaultQueueConfig()
	cfg.MaxBytes, cfg.LeaseTTL = 256<<20, ttl
	if err := q.ensureStreams(t.Context(), cfg, 4); err != nil {
		t.Fatal(err)
	}
	kv, got, err := q.bucket(t.Context(), leasesBucket)
	if err != nil || got != ttl {
		t.Fatalf("ttl %v, error %v", got, err)
	}
	return q, leases{kv}
}

func holder(name string) LeaseHolder {
	return LeaseHolder{Forwarder: name, Instance: "instance of " + name, Since: time.Now().UTC()}
}

func TestLeaseHasOneHolder(t *testing.T) {
	q, kv := mustLeases(t, time.Hour)
	ctx := t.Context()
	a, err := takeLease(ctx, kv, time.Hour, SinkLane{"ingress", 3}, holder("a"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := takeLease(ctx, kv, time.Hour, SinkLane{"ingress", 3}, holder("b")); !errors.Is(err, errLeaseTaken) {
		t.Fatalf("taken twice: %v", err)
	}
	for range 3 {
		if err := a.renew(ctx); err != nil {
			t.Fatal(err)
		}
	}
	// The same lane of another sink is another lease.
	other, err := takeLease(ctx, kv, time.Hour, SinkLane{"archive", 3}, holder("b"))
	if err != nil {
		t.Fatal(err)
	}
	holders, err := LaneHolders(ctx, q)
	if err != nil || len(holders) != 2 || holders[SinkLane{"ingress", 3}].Forwarder != "a" || holders[SinkLane{"archive", 3}].Forwarder != "b" {
		t.Fatalf("holders %v, error %v", holders, err)
	}
	for _, l := range []*lease{a, other} {
		if err := l.release(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if holders, err := LaneHolders(ctx, q); err != nil || len(holders) != 0 {
		t.Fatalf("after the release: holders %v, error %v", holders, err)
	}
	b, err := takeLease(ctx, kv, time.Hour, SinkLane{"ingress", 3}, holder("b"))
	if err != nil {
		t.Fatalf("after the release: %v", err)
	}
	// The former holder notices, and cannot give away what is b's.
	if err := a.renew(ctx); !errors.Is(err, errLeaseLost) {
		t.Errorf("renewed by its former holder: %v", err)
	}
	if err := a.release(ctx); err != nil {
		t.Error(err)
	}
	if err := b.renew(ctx); err != nil {
		t.Error(err)
	}
}

func TestLeaseKeys(t *testing.T) {
	for _, p := range []SinkLane{{"archive", 0}, {"a_1", 7}, {"ingress", 42}, {"ingress", MaxLanes - 1}} {
		if back, ok := parseLeaseKey(p.leaseKey()); !ok || back != p {
			t.Errorf("%v: key %s, read as %v", p, p.leaseKey(), back)
		}
	}
	for _, key := range []string{"", "ingress", "ingress.", "ingress.x", "ingress.7", "ingress.007", "ingress.01.02", "ingress.+1"} {
		if p, ok := parseLeaseKey(key); ok {
			t.Errorf("%q is taken for the lease of %v", key, p)
		}
	}
}

// An update or a creation whose answer was lost has moved the revision, or taken the lane.
func TestLeaseSurvivesLostAnswers(t *testing.T) {
	_, kv := mustLeases(t, time.Hour)
	ctx := t.Context()
	l, err := takeLease(ctx, kv, time.Hour, SinkLane{"ingress", 1}, holder("a"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Update(ctx, l.key, l.value, l.revision); err != nil {
		t.Fatal(err)
	}
	if err := l.renew(ctx); err != nil {
		t.Errorf("after an update that the holder does not know of: %v", err)
	}
	if _, err := takeLease(ctx, kv, time.Hour, SinkLane{"ingress", 1}, holder("a")); err != nil {
		t.Errorf("after a take that the holder does not know of: %v", err)
	}
	if err := l.renew(ctx); !errors.Is(err, errLeaseLost) {
		t.Errorf("the former tenure goes on: %v", err)
	}
}

// A holder that cannot renew stops before anybody else can have the lane.
func TestLeaseEndsBeforeItExpires(t *testing.T) {
	t.Parallel()
	const ttl = 3 * testLeaseTTL // of which a few parts are for whoever is late on a loaded machine
	n := mustNATS(t)
	q, nc := mustQueue(t, n)
	cfg := DefaultQueueConfig()
	cfg.MaxBytes, cfg.LeaseTTL = 256<<20, ttl
	if err := q.ensureStreams(t.Context(), cfg, 4); err != nil {
		t.Fatal(err)
	}
	kv, _, err := q.bucket(t.Context(), leasesBucket)
	if err != nil {
		t.Fatal(err)
	}
	l, err := takeLease(t.Context(), leases{kv}, ttl, SinkLane{"ingress", 0}, holder("a"))
	if err != nil {
		t.Fatal(err)
	}
	lost := make(chan error, 1)
	go func() { lost <- l.keep(t.Context()) }()
	other, _ := mustQueue(t, n)
	otherKV, _, err := other.bucket(t.Context(), leasesBucket)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(ttl + ttl/2) // it is renewed: nobody else gets it
	if _, err := takeLease(t.Context(), leases{otherKV}, ttl, SinkLane{"ingress", 0}, holder("b")); !errors.Is(err, errLeaseTaken) {
		t.Fatalf("a lease that is kept: %v", err)
	}
	nc.Close()
	cut := time.Now()
	if err := <-lost; !errors.Is(err, errLeaseLost) {
		t.Fatalf("keep: %v", err)
	}
	ended := time.Since(cut)
	if err := l.valid(); !errors.Is(err, errLeaseLost) {
		t.Errorf("valid: %v", err)
	}
	var taken time.Duration
	eventually(t, patience, "the other one takes the lane", func() bool {
		_, err := takeLease(t.Context(), leases{otherKV}, ttl, SinkLane{"ingress", 0}, holder("b"))
		taken = time.Since(cut)
		return err == nil
	})
	if ended > ttl*11/12 || taken < ended {
		t.Errorf("the holder stopped after %v and the other one had it after %v", ended, taken)
	}
	if taken > 2*ttl {
		t.Errorf("the lane was nobody's for %v", taken)
	}
}

// A process that was paused sees at once that its lease is over, without asking anybody.
func TestLeaseOfAPausedProcess(t *testing.T) {
	_, kv := mustLeases(t, time.Second)
	l, err := takeLease(t.Context(), kv, time.Second, SinkLane{"ingress", 0}, holder("a"))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "another one takes the lane", func() bool {
		_, err := takeLease(t.Context(), kv, time.Second, SinkLane{"ingress", 0}, holder("b"))
		return err == nil
	})
	if err := l.valid(); !errors.Is(err, errLeaseLost) {
		t.Errorf("valid: %v", err)
	}
	if err := l.renew(context.Background()); !errors.Is(err, errLeaseLost) {
		t.Errorf("renew: %v", err)
	}
}
