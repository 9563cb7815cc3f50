package pipeline

import (
	"crypto/sha256"
	"time"

	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/encoding/protowire"
)

// CorrelationAttribute is the extension by which a producer names what its event belongs to.
// The spans of an event without it have the event's id there, and of a longer one than an id may
// be its beginning.
const CorrelationAttribute = "correlationid"

// tracedEvent is what the spans of one sampled event are made of.
type tracedEvent struct {
	id, source, typ, correlation string

	trace  trace.TraceID
	parent trace.SpanContext // named by its traceparent; invalid: it has none

	// At ingest: the span of its acceptance, or, for an event that has none, its parent; whether
	// the transaction stored it; and the transaction itself, once it has ended. The last two are
	// of the goroutine that commits until the event is answered for.
	accepted trace.SpanContext
	stored   bool
	commit   commitTimes
}

// commitTimes are of a transaction that has ended.
type commitTimes struct {
	began, end time.Time
	events     int
	err        error
}

// attributes are those of every span of the event.
func (e *tracedEvent) attributes(op string, more ...attribute.KeyValue) []attribute.KeyValue {
	return operation(op, append(more,
		semconv.CloudEventsEventID(e.id), semconv.CloudEventsEventSource(e.source), semconv.CloudEventsEventType(e.typ),
		semconv.MessagingMessageID(e.id), semconv.MessagingMessageConversationID(e.correlation))...)
}

// sample returns what the spans of an event are made of, or nil if it is not sampled. encoded is
// a CloudEvent's encoding; nothing of it is kept.
func (t *Tracing) sample(encoded []byte) *tracedEvent {
	var f tracedFields
	if !f.read(encoded) {
		return nil
	}
	id, parent := f.origin()
	if !t.sampled(parent, id) {
		return nil
	}
	// An exporter holds thousands of these, and cannot send what is not valid UTF-8.
	// What is cut off must not stay behind the rest, either.
	text := func(b []byte) string { return plainText(string(b[:min(len(b), MaxIDBytes+1)]), MaxIDBytes) }
	e := &tracedEvent{id: text(f.id), source: text(f.source), typ: text(f.typ), trace: id, parent: parent}
	if e.correlation = text(f.correlation); e.correlation == "" {
		e.correlation = e.id
	}
	return e
}

// tracedFields point into an event's encoding.
type tracedFields struct{ id, source, typ, parent, correlation []byte }

// origin returns the trace of an event, and the span in it that the event comes from, if it has a
// traceparent.
func (f *tracedFields) origin() (trace.TraceID, trace.SpanContext) {
	if parent, ok := parseTraceparent(f.parent); ok {
		return parent.TraceID(), parent
	}
	return ownTrace(f.source, f.id), trace.SpanContext{}
}

// traceOfEvent is what the hash of an event's own trace begins with.
const traceOfEvent = "waybill trace\x00"

// ownTrace is the trace of an event without a traceparent.
func ownTrace(source, id []byte) trace.TraceID {
	var space [256]byte
	buf := append(space[:0], traceOfEvent...)
	buf = append(buf, source...)
	buf = append(buf, 0) // which no source contains
	sum := sha256.Sum256(append(buf, id...))
	return trace.TraceID(sum[:16])
}

// read reports whether the encoding could be read.
func (f *tracedFields) read(encoded []byte) bool {
	return eachField(encoded, func(number protowire.Number, content []byte) {
		switch number {
		case idField:
			f.id = content
		case sourceField:
			f.source = content
		case typeField:
			f.typ = content
		case attributesField:
			f.readAttribute(content)
		}
	})
}

func (f *tracedFields) readAttribute(entry []byte) {
	var key, value []byte
	eachField(entry, func(number protowire.Number, content []byte) {
		switch number {
		case entryKeyField:
			key = content
		case entryValueField:
			value = content
		}
	})
	var into *[]byte
	switch string(key) {
	case headerTrace:
		into = &f.parent
	case CorrelationAttribute:
		into = &f.correlation
	default:
		return
	}
	eachField(value, func(number protowire.Number, content []byte) {
		if number == ceStringField {
			*into = content
		}
	})
}

// eachField visits the fields of a message that are strings, bytes or messages. It reports
// whether all of it could be read.
func eachField(message []byte, visit func(number protowire.Number, content []byte)) bool {
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return false
		}
		message = message[n:]
		if kind != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(number, kind, message); n < 0 {
				return false
			}
			message = message[n:]
			continue
		}
		content, n := protowire.ConsumeBytes(message)
		if n < 0 {
			return false
		}
		visit(number, content)
		message = message[n:]
	}
	return true
}
