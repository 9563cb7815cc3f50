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
	events  []*tracedEvent // the first ones: the spans of many more would hold up the answer
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
		events[i].traced = e
		if a == nil {
			a = &Accepting{tracing: t, front: front, started: started, count: len(events)}
		}
		if len(a.events) == maxTraced {
			e.accepted = e.parent
			continue
		}
		e.accepted = newSpanContext(e.trace)
		a.events = append(a.events, e)
	}
	return a
}

// Answered makes the spans of the acceptance and of the transaction: the request has its answer,
// which is err.
func (a *Accepting) Answered(err error) {
	if a != nil {
		a.answeredAt(time.Now(), err)
	}
}

// answeredAt is Answered for a request that had its answer at end, perhaps before the transaction was over.
// It must not be called before the events are answered for: until then others write what it reads.
func (a *Accepting) answeredAt(end time.Time, err error) {
	for _, e := range a.events {
		a.tracing.emit(pastSpan{
			name: "accept events", kind: trace.SpanKindServer, self: e.accepted, parent: e.parent,
			start: a.started, end: end, failure: failureOf(err),
			attributes: e.attributes("accept", attribute.String("waybill.front", a.front), semconv.MessagingBatchMessageCount(a.count)),
		})
		if !e.commit.end.IsZero() {
			a.tracing.emit(e.committed())
		}
	}
}

// failureOf is the status of a span: the kind of an error, whose text may hold values.
func failureOf(err error) string {
	if err == nil {
		return ""
	}
	return reasonOf(err)
}

// committed is the span of the transaction that the event went into.
func (e *tracedEvent) committed() pastSpan {
	outcome := "stored"
	switch {
	case e.commit.err != nil:
		outcome = "failed"
	case !e.stored:
		outcome = "accepted before"
	}
	return pastSpan{
		name: "commit events", kind: trace.SpanKindClient, self: newSpanContext(e.trace), parent: e.accepted,
		start: e.commit.began, end: e.commit.end, failure: failureOf(e.commit.err),
		attributes: e.attributes("commit", semconv.DBSystemNamePostgreSQL, semconv.MessagingBatchMessageCount(e.commit.events),
			attributeOutcome.String(outcome)),
	}
}

// committed notes that a transaction of events has ended. Their spans are made by those who wait
// for the answer, and not here, where all others wait too.
func (t *Tracing) committed(events []Event, began time.Time, err error) {
	if t == nil {
		return
	}
	end := time.Now()
	for i := range events {
		if e := events[i].traced; e != nil {
			e.commit = commitTimes{began: began, end: end, events: len(events), err: err}
		}
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
