package pipeline

import (
	"time"

	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// settled makes the spans of the sampled events that receipts name: the transaction has
// committed.
func (t *Tracing) settled(receipts []Receipt, began time.Time) {
	if t == nil {
		return
	}
	end := time.Now()
	for _, r := range receipts {
		for _, b := range r.Batches {
			for _, e := range b.Traced {
				t.settledOne(r, b, e, began, end)
			}
		}
	}
}

func (t *Tracing) settledOne(r Receipt, b BatchReceipt, e TracedEvent, began, end time.Time) {
	parent, ok := parseTraceparent(e.Parent)
	if !ok {
		return
	}
	about := []attribute.KeyValue{
		attributeSink.String(r.Sink), attributeBatch.String(b.ID.String()),
		semconv.MessagingOperationTypeSettle, semconv.MessagingDestinationName(ReceiptsStream),
	}
	outcome := outcomes[Delivered]
	for _, f := range b.Refused {
		if f.Index == e.Index {
			outcome = "dead letter"
			about = append(about, attributeRefusal.String(f.Code))
		}
	}
	t.emit(pastSpan{
		name: "settle " + r.Sink, kind: trace.SpanKindClient, self: newSpanContext(parent.TraceID()), parent: parent,
		start: began, end: end, attributes: operation("settle", append(about, attributeOutcome.String(outcome))...),
	})
}
