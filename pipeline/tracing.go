package pipeline

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// maxTraced is how many events of one batch, the first ones that are sampled, have spans
// behind the commit. It is also how many links a span keeps.
const maxTraced = 128

// Tracing makes the spans of the events that are sampled. nil makes none and does nothing.
//
// All spans of an event are in its own trace: the one that its traceparent names, or, where it
// has none, one whose id is made of its source and id. So each process finds the trace from the
// event alone. What a process further on must know of the spans of this one travels once a
// batch, as the message's traceparent: see hop.
type Tracing struct {
	tracer  trace.Tracer
	sampled Sampled
}

// Sampled says whether an event's spans are made. parent is the span that the event's
// traceparent names; invalid: it has none. Every process must say the same of an event, so the
// answer depends on the two arguments only.
type Sampled func(parent trace.SpanContext, id trace.TraceID) bool

// NewTracing returns a Tracing whose spans go to provider. Its ids and its sampler must follow
// DecidedSpan.
func NewTracing(provider trace.TracerProvider, sampled Sampled) *Tracing {
	return &Tracing{tracer: provider.Tracer("github.com/waybillhq/waybill/pipeline"), sampled: sampled}
}

type decidedKey struct{}

// DecidedSpan returns the identity that a span started with ctx must have. Such a span was
// decided on before: it is sampled.
func DecidedSpan(ctx context.Context) (trace.SpanContext, bool) {
	self, ok := ctx.Value(decidedKey{}).(trace.SpanContext)
	return self, ok
}

// pastSpan is a span that has ended when it is made: only then it is known to be worth it, and
// nothing is kept open meanwhile.
type pastSpan struct {
	name         string
	kind         trace.SpanKind
	self, parent trace.SpanContext // an invalid parent is none
	start, end   time.Time
	failure      string // empty: it went well
	attributes   []attribute.KeyValue
	links        []trace.Link
}

func (t *Tracing) emit(p pastSpan) {
	ctx := context.WithValue(context.Background(), decidedKey{}, p.self)
	if p.parent.IsValid() {
		ctx = trace.ContextWithRemoteSpanContext(ctx, p.parent)
	}
	_, span := t.tracer.Start(ctx, p.name, trace.WithSpanKind(p.kind), trace.WithTimestamp(p.start),
		trace.WithAttributes(p.attributes...), trace.WithLinks(p.links...))
	if p.failure != "" {
		span.SetStatus(codes.Error, p.failure)
	}
	span.End(trace.WithTimestamp(p.end))
}

// Attributes that no convention names.
const (
	attributeBatch   = attribute.Key("waybill.batch")   // <number>.<token>
	attributeAttempt = attribute.Key("waybill.attempt") // of publishing the batch, from 0
	attributeSink    = attribute.Key("waybill.sink")
	attributeOutcome = attribute.Key("waybill.outcome")
	attributeRefusal = attribute.Key("waybill.refusal.code")
)

// operation are the attributes that say what a span is of.
func operation(name string, more ...attribute.KeyValue) []attribute.KeyValue {
	return append(more, semconv.MessagingSystemKey.String("nats"), semconv.MessagingOperationName(name))
}

// newSpanContext is a new span in a trace.
func newSpanContext(id trace.TraceID) trace.SpanContext {
	return sampledContext(id, newSpanID())
}

func sampledContext(id trace.TraceID, span trace.SpanID) trace.SpanContext {
	return trace.NewSpanContext(trace.SpanContextConfig{TraceID: id, SpanID: span, TraceFlags: trace.FlagsSampled})
}

func newSpanID() (id trace.SpanID) {
	binary.BigEndian.PutUint64(id[:], max(rand.Uint64(), 1)) // zero is no id
	return id
}

func newTraceID() (id trace.TraceID) {
	binary.BigEndian.PutUint64(id[:8], rand.Uint64())
	binary.BigEndian.PutUint64(id[8:], max(rand.Uint64(), 1))
	return id
}
