package waybilltest

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"

	"github.com/waybillhq/waybill/internal/endpoint"
	"github.com/waybillhq/waybill/internal/expect"
	"github.com/waybillhq/waybill/pipeline"
)

const (
	// shownEvents bounds the events that a message names.
	shownEvents = 10
	// tailFor is how long the stream is read for a message, and explainTimeout what all of it may take.
	tailFor        = 500 * time.Millisecond
	explainTimeout = 5 * time.Second
)

// explain says why an expectation is not met, with all that a reader needs to find the cause.
func (w *Waybill) explain(e expectation, s state) string {
	ctx, cancel := context.WithTimeout(context.Background(), explainTimeout)
	defer cancel()
	var out strings.Builder
	fmt.Fprintf(&out, "%s: %d", e.wanted(), len(s.matching))
	list(&out, "matches", "match", s.matching)
	list(&out, "does not match", "do not match", s.other)
	if len(s.matching)+len(s.other) == 0 {
		out.WriteString("\n  nothing else came either")
	}
	w.explainStream(ctx, &out, e.filter)
	w.explainLetters(ctx, &out)
	if b := w.endpoint.Behaviour(); b != endpoint.DefaultBehaviour() {
		fmt.Fprintf(&out, "\n  the endpoint behaves as it was told: %+v", newBehaviour(b))
	}
	for _, problem := range w.parts.problems(false) {
		fmt.Fprintf(&out, "\n  %s", strings.ReplaceAll(problem, "\n", "\n    ")) // one that has several lines
	}
	if err := w.parts.err(); err != nil {
		fmt.Fprintf(&out, "\n  %v", err)
	}
	return out.String()
}

// list names the first of some events. one and many say what they do.
func list(out *strings.Builder, one, many string, events []Event) {
	if len(events) == 0 {
		return
	}
	fmt.Fprintf(out, "\n  %d %s:", len(events), oneOrMany(len(events), one, many))
	for i, e := range events {
		if i == shownEvents {
			fmt.Fprintf(out, "\n    and %d more", len(events)-i)
			return
		}
		fmt.Fprintf(out, "\n    %s", e)
	}
}

// oneOrMany is the word for n of something.
func oneOrMany(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

// explainStream says how many events that match were accepted, and which sinks lack them.
func (w *Waybill) explainStream(ctx context.Context, out *strings.Builder, filter Filter) {
	p, total, err := w.progress(ctx, filter)
	if err != nil {
		fmt.Fprintf(out, "\n  what was accepted is not known: %v", err)
		return
	}
	fmt.Fprintf(out, "\n  %d %s accepted, of which %d %s", total, oneOrMany(total, "event was", "events were"),
		p.Seen, oneOrMany(p.Seen, "matches", "match"))
	if lacks := p.Lacks(); lacks != "" {
		fmt.Fprintf(out, "; of these %s", lacks)
	}
}

// progress reads the stream from its beginning, and asks what became of the events that match; total is how
// many events it holds.
func (w *Waybill) progress(ctx context.Context, filter Filter) (p expect.Progress, total int, err error) {
	sinks, err := w.store.Sinks(ctx)
	if err != nil {
		return p, 0, err
	}
	p.Sinks = sinks
	watch := expect.NewWatch()
	limited, cancel := context.WithTimeout(ctx, tailFor)
	defer cancel()
	err = w.queue.Tail(limited, pipeline.TailStart{Since: w.began}, nil, func(b pipeline.TailedBatch) error {
		return expect.EachEvent(b, func(index int, ce *pb.CloudEvent) error {
			if b.Attempt == 0 {
				total++
			}
			if filter.matches(newEvent(ce)) {
				watch.See(b, index)
			}
			return nil
		})
	})
	if limited.Err() == nil || ctx.Err() != nil {
		return p, total, err
	}
	return p, total, watch.Settle(ctx, w.store, sinks, &p)
}

func (w *Waybill) explainLetters(ctx context.Context, out *strings.Builder) {
	letters, _, err := w.deadLetters(ctx, Filter{})
	if err != nil {
		fmt.Fprintf(out, "\n  %v", err)
		return
	}
	for i, l := range letters {
		if i == shownEvents {
			fmt.Fprintf(out, "\n  and %d more dead letters", len(letters)-i)
			return
		}
		fmt.Fprintf(out, "\n  dead letter: %s", l)
	}
}
