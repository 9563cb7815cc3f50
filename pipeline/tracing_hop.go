package pipeline

import (
	"encoding/binary"
	"log/slog"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// hop is the publishing of a batch with sampled events, under way. nil is of any other.
//
// The span of the batch travels in its message. That of a batch of one event is the event's, in
// the event's trace. That of a larger one has a trace of its own, and is linked to the spans of
// the sampled events, each in its event's trace; the ids of these are made of the batch's, so
// that a forwarder knows them.
type hop struct {
	tracing *Tracing
	batch   *Batch
	members []tracedMember
	self    trace.SpanContext
	began   time.Time
}

// publishing begins to publish a batch: its message names the span.
func (t *Tracing) publishing(b *Batch, msg *nats.Msg) *hop {
	if t == nil || len(b.traced) == 0 {
		return nil
	}
	h := &hop{tracing: t, batch: b, members: b.traced, began: time.Now()}
	if b.count == 1 {
		h.self = newSpanContext(b.traced[0].trace)
	} else {
		h.self = newSpanContext(newTraceID())
	}
	msg.Header[headerTrace] = []string{formatTraceparent(h.self)}
	return h
}

// republishing is publishing for a batch that comes from Postgres again, so that nothing is
// known of the spans before.
func (t *Tracing) republishing(b *Batch, body []byte, msg *nats.Msg) *hop {
	if t == nil {
		return nil
	}
	events, err := splitBody(body, b.count)
	if err != nil {
		return nil // the forwarder will say so
	}
	b.traced = t.members(events)
	return t.publishing(b, msg)
}

// members are the first sampled ones of a batch's events.
func (t *Tracing) members(events [][]byte) (members []tracedMember) {
	for index, encoded := range events {
		if len(members) == maxTraced {
			break
		}
		if e := t.sample(encoded); e != nil {
			members = append(members, tracedMember{e, index, e.parent})
		}
	}
	return members
}

// trace names a trace in a log: the first sampled event's. It is empty where there is none.
func (h *hop) trace() slog.Attr {
	if h == nil || len(h.members) == 0 {
		return slog.Attr{}
	}
	return traceAttr(h.members[0].trace)
}

func traceAttr(id trace.TraceID) slog.Attr { return slog.String("trace_id", id.String()) }

// traceOfAny is hop.trace for events that are not in a batch.
func traceOfAny(events []Event) slog.Attr {
	for i := range events {
		if t := events[i].traced; t != nil {
			return traceAttr(t.trace)
		}
	}
	return slog.Attr{}
}

// stored makes the spans: the message is in the stream, or is given up.
func (h *hop) stored(err error) {
	if h == nil {
		return
	}
	end, failure := time.Now(), ""
	if err != nil {
		failure = "not published"
	}
	more := func() []attribute.KeyValue {
		return []attribute.KeyValue{
			semconv.MessagingOperationTypeSend, semconv.MessagingDestinationName(EventsStream),
			semconv.MessagingDestinationPartitionID(strconv.Itoa(h.batch.Lane)), semconv.MessagingBatchMessageCount(h.batch.count),
			attributeBatch.String(h.batch.ID.String()), attributeAttempt.Int(h.batch.Attempt),
		}
	}
	p := pastSpan{name: "publish " + EventsStream, kind: trace.SpanKindProducer, start: h.began, end: end, failure: failure}
	for _, m := range h.members {
		p.self, p.parent, p.attributes = h.spanOf(m.tracedEvent, m.index), m.parent, m.attributes("publish", more()...)
		p.links = append(p.links, trace.Link{SpanContext: p.self})
		one := p
		one.links = nil
		h.tracing.emit(one)
	}
	if h.batch.count > 1 {
		p.self, p.parent, p.attributes = h.self, trace.SpanContext{}, operation("publish", more()...)
		h.tracing.emit(p)
	}
}

func (h *hop) spanOf(e *tracedEvent, index int) trace.SpanContext {
	return memberSpan(h.self, h.batch.count, e, index)
}

// memberSpan is the span that published an event of a batch of count events, whose own was
// batch.
func memberSpan(batch trace.SpanContext, count int, e *tracedEvent, index int) trace.SpanContext {
	if count == 1 {
		return sampledContext(e.trace, batch.SpanID())
	}
	own := batch.SpanID()
	// The steps of splitmix64: neighbours get ids that are far apart.
	x := binary.BigEndian.Uint64(own[:]) + (uint64(index)+1)*0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	var id trace.SpanID
	binary.BigEndian.PutUint64(id[:], max(x^x>>31, 1))
	return sampledContext(e.trace, id)
}
