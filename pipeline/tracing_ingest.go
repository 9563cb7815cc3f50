package pipeline

import (
	"time"

	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// Accepting is the acceptance, under way, of those events of a request that are sampled. nil is
// none.
type Accepting struct {
	tracing *Tracing
	front   string
	started time.Time
	events  []*tracedEvent
	count   int
}

// Accept marks the events that are sampled, before they are submitted. front is the way by which
// their request came, and started when. The result is nil if none is sampled.
func (t *Tracing) Accept(front string, started time.Time, events []Event) *Accepting {
	if t == nil {
		return nil
	}
	var a *Accepting
	for i := range events {
		e := t.sample(events[i].Encoded)
		if e == nil {
			continue
		}
		e.accepted = newSpanContext(e.trace)
		events[i].traced = e
		if a == nil {
			a = &Accepting{tracing: t, front: front, started: started, count: len(events)}
		}
		a.events = append(a.events, e)
	}
	return a
}

// Answered makes the spans: the request has its answer.
func (a *Accepting) Answered(err error) {
	if a == nil {
		return
	}
	end := time.Now()
	for _, e := range a.events {
		a.tracing.emit(pastSpan{
			name: "accept events", kind: trace.SpanKindServer, self: e.accepted, parent: e.parent,
			start: a.started, end: end, failure: failureOf(err),
			attributes: e.attributes("accept", attribute.String("waybill.front", a.front), semconv.MessagingBatchMessageCount(a.count)),
		})
	}
}

// failureOf is the status of a span: the kind of an error, whose text may hold values.
func failureOf(err error) string {
	if err == nil {
		return ""
	}
	return reasonOf(err)
}

// committed makes the spans of a transaction of events that has ended.
func (t *Tracing) committed(events []Event, began time.Time, err error) {
	if t == nil {
		return
	}
	end := time.Now()
	for i := range events {
		e := events[i].traced
		if e == nil {
			continue
		}
		outcome := "stored"
		switch {
		case err != nil:
			outcome = "failed"
		case !e.stored:
			outcome = "accepted before"
		}
		t.emit(pastSpan{
			name: "commit events", kind: trace.SpanKindClient, self: newSpanContext(e.trace), parent: e.accepted,
			start: began, end: end, failure: failureOf(err),
			attributes: e.attributes("commit", semconv.DBSystemNamePostgreSQL, semconv.MessagingBatchMessageCount(len(events)),
				attributeOutcome.String(outcome)),
		})
	}
}

// tracedMember is a sampled event of a batch.
type tracedMember struct {
	*tracedEvent
	index  int
	parent trace.SpanContext // of the span that publishes it
}

// traced are the sampled events of a batch that is committed.
func (f *flush) traced(b *flushBatch) (members []tracedMember) {
	for index, i := range b.members {
		e := f.events[i].traced
		if e == nil {
			continue
		}
		e.stored = true
		if len(members) < maxTraced {
			members = append(members, tracedMember{e, index, e.accepted})
		}
	}
	return members
}
