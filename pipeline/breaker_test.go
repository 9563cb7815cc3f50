package pipeline

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var errDown = errors.New("down")

func TestBreakerLetsOneProbeThroughAndThenAll(t *testing.T) {
	b := newBreaker(3, 20*time.Millisecond, 40*time.Millisecond)
	for range 3 {
		if probe, err := b.enter(t.Context(), nil); err != nil || probe {
			t.Fatalf("closed: probe %v, error %v", probe, err)
		}
		b.failed(false, errDown)
	}
	if state := b.state(); !errors.Is(state.err, errDown) || state.since.IsZero() {
		t.Fatalf("after three failures in a row: %+v", state)
	}
	var probes, passed atomic.Int32
	var wg sync.WaitGroup
	answer := make(chan struct{})
	for range 10 {
		wg.Go(func() {
			probe, err := b.enter(t.Context(), nil)
			if err != nil {
				t.Error(err)
			}
			if probe {
				probes.Add(1)
				<-answer
			}
			passed.Add(1)
			b.succeeded()
		})
	}
	eventually(t, patience, "a probe goes", func() bool { return probes.Load() == 1 })
	time.Sleep(100 * time.Millisecond) // others would go now, if they could
	if probes.Load() != 1 || passed.Load() != 0 {
		t.Fatalf("while a probe is under way: %d probes, %d passed", probes.Load(), passed.Load())
	}
	close(answer)
	wg.Wait()
	if probes.Load() != 1 || b.state().err != nil {
		t.Errorf("after the probe's success: %d probes, state %v", probes.Load(), b.state())
	}
}

func TestBreakerWaitsAgainAfterAFailedProbe(t *testing.T) {
	b := newBreaker(1, 10*time.Millisecond, 80*time.Millisecond)
	b.failed(false, errDown)
	began := time.Now()
	for range 5 {
		probe, err := b.enter(t.Context(), nil)
		if err != nil || !probe {
			t.Fatalf("probe %v, error %v", probe, err)
		}
		b.failed(probe, errDown)
	}
	// At least half of 10 + 20 + 40 + 80 + 80.
	if took := time.Since(began); took < 115*time.Millisecond {
		t.Errorf("five probes took %v", took)
	}
}

func TestBreakerWaitEndsWithItsCaller(t *testing.T) {
	b := newBreaker(1, time.Hour, time.Hour)
	b.failed(false, errDown)
	drain := make(chan struct{})
	close(drain)
	if _, err := b.enter(t.Context(), drain); !errors.Is(err, errDraining) {
		t.Errorf("drain: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errLeaseLost)
	if _, err := b.enter(ctx, nil); !errors.Is(err, errLeaseLost) {
		t.Errorf("context: %v", err)
	}
}

// A probe whose lane is lost says nothing, and must not keep the others waiting for ever.
func TestBreakerAbandonedProbe(t *testing.T) {
	b := newBreaker(1, time.Millisecond, time.Hour)
	b.failed(false, errDown)
	if probe, err := b.enter(t.Context(), nil); !probe || err != nil {
		t.Fatalf("probe %v, error %v", probe, err)
	}
	next := make(chan bool)
	go func() {
		probe, _ := b.enter(t.Context(), nil)
		next <- probe
	}()
	b.abandoned(true)
	select {
	case probe := <-next:
		if !probe {
			t.Error("the next one is no probe")
		}
	case <-time.After(patience):
		t.Fatal("nobody probes any more")
	}
}
