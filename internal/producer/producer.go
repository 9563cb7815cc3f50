// Package producer sends CloudEvents to an ingest, over HTTP or gRPC, and again where the
// answer says that this helps.
package producer

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
)

// Sender sends events in one call. The result has one error per event: nil when it is
// accepted, a *RefusedError when it never will be, a *TryAgainError when it may be later.
type Sender interface {
	Send(ctx context.Context, events []*pb.CloudEvent) []error
}

// RefusedError says what is wrong with an event.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string { return "refused: " + e.Reason }

// TryAgainError says that an event may be accepted later.
type TryAgainError struct {
	// After is how long the server wants to be left alone; 0: it did not say.
	After time.Duration
	// Unknown: the event may have been stored, and sending it again may double it.
	Unknown bool
	Err     error
}

// UnreachableError is what a TryAgainError is about where no server was reached: nothing was sent.
type UnreachableError struct {
	Reason string // in few words, without the address
	Err    error
}

func (e *UnreachableError) Error() string { return e.Err.Error() }
func (e *UnreachableError) Unwrap() error { return e.Err }

func (e *TryAgainError) Error() string { return e.Err.Error() }
func (e *TryAgainError) Unwrap() error { return e.Err }

// Outcome is what became of one event.
type Outcome struct {
	// Err is nil for an accepted event.
	Err error
	// Unknown counts the tries after which the event may have been stored, although that
	// was not said.
	Unknown int
}

// Pauses between tries, which double; an answer that names a longer one is obeyed.
const (
	minPause = 100 * time.Millisecond
	maxPause = 5 * time.Second
)

// SendUntil sends events, and those that may be accepted later again, in their order, until
// none is left or patience is over. told, which may be nil, hears of each try that left
// some over. The outcomes are those of the last tries.
func SendUntil(ctx context.Context, sender Sender, events []*pb.CloudEvent, patience time.Duration, told func(left int, err error)) []Outcome {
	outcomes := make([]Outcome, len(events))
	left := make([]int, len(events)) // indexes into events
	for i := range left {
		left[i] = i
	}
	deadline := time.Now().Add(patience)
	for wait := minPause; ; wait = min(2*wait, maxPause) {
		var after time.Duration
		left, after = try(ctx, sender, events, left, outcomes)
		if len(left) == 0 {
			return outcomes
		}
		if told != nil {
			told(len(left), outcomes[left[0]].Err)
		}
		after = max(after, wait/2+rand.N(wait/2+1))
		if time.Now().Add(after).After(deadline) || !sleep(ctx, after) {
			return outcomes
		}
	}
}

// try sends the events that are left once and returns which are left then, and how long
// the server wants to be left alone.
func try(ctx context.Context, sender Sender, events []*pb.CloudEvent, left []int, outcomes []Outcome) (still []int, after time.Duration) {
	call := make([]*pb.CloudEvent, len(left))
	for i, index := range left {
		call[i] = events[index]
	}
	for i, err := range sender.Send(ctx, call) {
		outcome := &outcomes[left[i]]
		outcome.Err = err
		var again *TryAgainError
		if !errors.As(err, &again) {
			continue
		}
		if again.Unknown {
			outcome.Unknown++
		}
		after = max(after, again.After)
		still = append(still, left[i])
	}
	return still, after
}

// all is the same error for each of n events.
func all(n int, err error) []error {
	errs := make([]error, n)
	for i := range errs {
		errs[i] = err
	}
	return errs
}

// sleep reports whether ctx lives after d.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
