package pipeline

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// breaker keeps the lanes of one sink from beating on a destination that is down: after a
// number of failed requests in a row they all wait, and one request at a time probes. It
// makes waiters wait rather than turning them away, and lets all of them go at the first
// success, so that the backlog of an outage drains at full speed. It is safe for
// concurrent use.
type breaker struct {
	failures           int // in a row, that open it
	pauseMin, pauseMax time.Duration

	mu      sync.Mutex // guards what follows
	row     int        // failures in a row
	open    bool
	since   time.Time // open since
	last    error     // of the newest failure, while open
	pause   time.Duration
	until   time.Time     // no probe before
	probing bool          // one is under way
	changed chan struct{} // closed, and replaced, when waiters should look again
}

func newBreaker(failures int, pauseMin, pauseMax time.Duration) *breaker {
	return &breaker{failures: failures, pauseMin: pauseMin, pauseMax: pauseMax, changed: make(chan struct{})}
}

// enter waits until a request may be sent. probe says that it decides for all; the caller
// must hand it to succeeded, failed or abandoned. It returns errDraining when drain is
// closed first.
func (b *breaker) enter(ctx context.Context, drain <-chan struct{}) (probe bool, err error) {
	for {
		ok, probe, wait, changed := b.try()
		if ok {
			return probe, nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-changed:
		case <-drain:
			err = errDraining
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		timer.Stop()
		if err != nil {
			return false, err
		}
	}
}

// try says whether a request may go, or how long to wait and on what.
func (b *breaker) try() (ok, probe bool, wait time.Duration, changed <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.open {
		return true, false, 0, nil
	}
	if b.probing {
		return false, false, b.pauseMax, b.changed
	}
	if wait := time.Until(b.until); wait > 0 {
		return false, false, wait, b.changed
	}
	b.probing = true
	return true, true, 0, nil
}

// succeeded takes note of a request that the destination answered, even if it took nothing.
// It closes the breaker, whichever request it was: the destination works.
func (b *breaker) succeeded() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.row = 0
	if b.open {
		b.open, b.probing, b.last = false, false, nil
		b.wake()
	}
}

// failed takes note of a request that ended in an error: no answer, or none to be believed.
func (b *breaker) failed(probe bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.row++
	switch {
	case b.open && probe:
		b.last = err
		b.probing = false
		b.pause = min(2*b.pause, b.pauseMax)
	case !b.open && b.row >= b.failures:
		b.open, b.since, b.last = true, time.Now(), err
		b.pause = b.pauseMin
	default:
		return
	}
	b.until = time.Now().Add(b.pause/2 + rand.N(b.pause/2+1))
	b.wake()
}

// abandoned takes note of a request without an outcome: its lane was lost meanwhile.
func (b *breaker) abandoned(probe bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if probe && b.probing {
		b.probing = false
		b.wake()
	}
}

// wake is called with mu held.
func (b *breaker) wake() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// change returns a channel that is closed at the next change of state.
func (b *breaker) change() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changed
}

// state returns why the breaker is open and since when, or a nil error.
func (b *breaker) state() trouble {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.open {
		return trouble{}
	}
	return trouble{err: b.last, since: b.since}
}
