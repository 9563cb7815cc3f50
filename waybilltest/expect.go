package waybilltest

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// Expect waits until count events that match have come to the endpoint, and returns them in the order in which they
// came first; one that came again is there once. It returns as soon as they are there. The test fails if
// they are fewer after the time given, or more than count when it looks: then count was
// wrong, or something was sent that should not have been. A count of 0 waits all the time given for nothing to come.
//
// To fail it ends the test, as t.Fatal does, and says what came instead, what still waits, which events are dead
// letters and what the processes say is wrong.
func (w *Waybill) Expect(t testing.TB, filter Filter, count int, within time.Duration) []Event {
	t.Helper()
	return w.expect(t, expectation{what: "at the endpoint", filter: filter, count: count, exactly: true, within: within}, w.delivered(filter))
}

// ExpectAtLeast is Expect, content with more than count.
func (w *Waybill) ExpectAtLeast(t testing.TB, filter Filter, count int, within time.Duration) []Event {
	t.Helper()
	return w.expect(t, expectation{what: "at the endpoint", filter: filter, count: count, within: within}, w.delivered(filter))
}

// Received returns what has come to the endpoint so far and matches, each event once, in the order of first arrivals.
func (w *Waybill) Received(filter Filter) []Event {
	matching, _, _ := w.received.split(filter)
	return matching
}

func (w *Waybill) delivered(filter Filter) func(context.Context) (state, error) {
	return func(context.Context) (s state, err error) {
		s.matching, s.other, s.changed = w.received.split(filter)
		return s, nil
	}
}

// expectation is what a test waits for.
type expectation struct {
	what    string // where the events are to be
	filter  Filter
	count   int
	exactly bool
	within  time.Duration
}

// state is what there is when somebody looks.
type state struct {
	matching, other []Event
	changed         <-chan struct{} // closed when there may be more; nil: look again after lookEvery
}

// lookEvery is the pause between looks at what tells nobody when it changes.
const lookEvery = 25 * time.Millisecond

// met tells whether the state is what is expected, and whether it can still become that.
func (e expectation) met(n int) (met, hopeless bool) {
	switch {
	case !e.exactly:
		return n >= e.count, false
	case e.count == 0:
		return false, n > 0 // only time tells
	default:
		return n == e.count, n > e.count
	}
}

// expect looks until the expectation is met, cannot be met any more, or the time is up.
func (w *Waybill) expect(t testing.TB, e expectation, look func(context.Context) (state, error)) []Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), e.within)
	defer cancel()
	for {
		over := ctx.Err() != nil // the last look, after the time is up, counts too
		s, err := look(context.WithoutCancel(ctx))
		met, hopeless := e.met(len(s.matching))
		switch {
		case err != nil:
			t.Fatalf("waybilltest: look for what is %s: %v", e.what, err)
		case met, over && e.count == 0 && len(s.matching) == 0:
			return s.matching
		case hopeless, over:
			t.Fatalf("waybilltest: %s", w.explain(e, s))
		}
		again := s.changed
		var timer <-chan time.Time
		if again == nil {
			timer = time.After(lookEvery)
		}
		select {
		case <-again:
		case <-timer:
		case <-w.parts.failed:
			t.Fatalf("waybilltest: %s", w.explain(e, s))
		case <-ctx.Done():
		}
	}
}

// wanted says in words what is expected.
func (e expectation) wanted() string {
	number := fmt.Sprint(e.count)
	switch {
	case e.count == 0:
		number = "no"
	case !e.exactly:
		number = "at least " + number
	}
	noun := "events"
	if e.count == 1 {
		noun = "event"
	}
	return fmt.Sprintf("expected %s %s %s within %v (%s)", number, noun, e.what, e.within, e.filter)
}
