package waybilltest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/protobuf/proto"

	"github.com/waybillhq/waybill/pipeline"
)

// DeadLetter is an event that a sink refused, or did not take within its time to live.
type DeadLetter struct {
	Event Event
	Sink  string // ingress or archive
	// Code and Reason are the sink's; the code of what was not taken in time is "expired".
	Code, Reason string
	FailedAt     time.Time
}

// String names the letter for people.
func (d DeadLetter) String() string {
	return fmt.Sprintf("%s, of %s: %s: %s", d.Event, d.Sink, d.Code, d.Reason)
}

// lettersPage is how many dead letters are read at once.
const lettersPage = 1000

// DeadLetters returns the dead letters whose events match, the oldest first.
func (w *Waybill) DeadLetters(t testing.TB, filter Filter) []DeadLetter {
	t.Helper()
	letters, _, err := w.deadLetters(t.Context(), filter)
	if err != nil {
		t.Fatalf("waybilltest: %v", err)
	}
	return letters
}

// ExpectDeadLetters is Expect of dead letters: an event that two sinks refuse is two.
func (w *Waybill) ExpectDeadLetters(t testing.TB, filter Filter, count int, within time.Duration) []DeadLetter {
	t.Helper()
	var letters []DeadLetter
	e := expectation{what: "among the dead letters", filter: filter, count: count, exactly: true, within: within}
	w.expect(t, e, func(ctx context.Context) (s state, err error) {
		var other []DeadLetter
		letters, other, err = w.deadLetters(ctx, filter)
		s.matching, s.other = eventsOf(letters), eventsOf(other)
		return s, err
	})
	return letters
}

func eventsOf(letters []DeadLetter) []Event {
	out := make([]Event, len(letters))
	for i, l := range letters {
		out[i] = l.Event
	}
	return out
}

// deadLetters are those that match and those that do not, but for those that the sink took after all.
func (w *Waybill) deadLetters(ctx context.Context, filter Filter) (matching, other []DeadLetter, err error) {
	walk, err := w.store.WalkLetters(ctx, pipeline.LetterFilter{States: []pipeline.LetterState{pipeline.LetterDead, pipeline.LetterRequeued}})
	if err != nil {
		return nil, nil, fmt.Errorf("read the dead letters: %w", err)
	}
	for !walk.Done() {
		page, err := walk.List(ctx, lettersPage, true)
		if err != nil {
			return nil, nil, fmt.Errorf("read the dead letters: %w", err)
		}
		for _, l := range page {
			ce := new(pb.CloudEvent)
			if err := proto.Unmarshal(l.Encoded, ce); err != nil {
				return nil, nil, fmt.Errorf("read the dead letter %s: %w", l.ID, err)
			}
			e := newEvent(ce)
			e.Seqnum = l.Seqnum // it is not in the encoding
			letter := DeadLetter{Event: e, Sink: l.Sink, Code: l.Code, Reason: l.Reason, FailedAt: l.FailedAt}
			if filter.matches(e) {
				matching = append(matching, letter)
			} else {
				other = append(other, letter)
			}
		}
	}
	return matching, other, nil
}
