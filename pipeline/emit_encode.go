package pipeline

import (
	"context"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"github.com/google/uuid"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/encoding/protowire"
)

// encode returns the event as NewEvent would make it, at a fraction of the cost: it writes the
// encoding as it goes, and a scan vouches for it. It is false where the scan does not: the event
// is invalid, too large, or has something that NewEvent changes.
func (e *CloudEvent) encode(ctx context.Context, maxBytes int, identifyBy string) (Event, bool) {
	id := e.ID
	if id == "" {
		made, err := uuid.NewRandom()
		if err != nil {
			return Event{}, false
		}
		id = made.String()
	}
	encoded, ok := e.append(ctx, make([]byte, 0, e.room()+len(id)), id)
	if !ok || len(encoded) > maxBytes {
		return Event{}, false
	}
	var s Scan
	if !s.Read(encoded) {
		return Event{}, false
	}
	event := Event{Source: e.Source, Type: e.Type, ID: id}
	if identifyBy == "" {
		event.Fingerprint = newFingerprint(e.Source, fingerprintOfID, id)
	} else if event, ok = s.Event(identifyBy); !ok {
		return Event{}, false
	}
	event.Encoded = encoded
	return event, true
}

// room is what the encoding takes without its id, and a little more; an event with long names of
// attributes may take more than that.
func (e *CloudEvent) room() int {
	const perField = 24 // tags, lengths and the names of the attributes that CloudEvents defines
	n := 10*perField + len(e.Source) + len(e.Type) + len(e.Subject) + len(e.DataContentType) + 2*len(e.DataSchema) +
		len(e.Data.bytes) + len(e.Data.text)
	for name, v := range e.Extensions {
		n += perField + len(name) + len(v.value.GetCeString()) + len(v.value.GetCeBytes())
	}
	return n
}

// append appends the encoding. It is false where there is none.
func (e *CloudEvent) append(ctx context.Context, b []byte, id string) ([]byte, bool) {
	b = appendString(b, idField, id)
	b = appendString(b, sourceField, e.Source)
	b = appendString(b, specVersionField, "1.0")
	b = appendString(b, typeField, e.Type)
	for name, v := range e.Extensions {
		if _, defined := definedFields[name]; defined || v.value == nil {
			return nil, false
		}
		b = appendAttribute(b, name, v.value)
	}
	if e.Subject != "" {
		b = AppendText(b, "subject", e.Subject)
	}
	if !e.Time.IsZero() {
		b = appendEntry(b, "time", ceTimestampField, appendTimestamp(nil, e.Time))
	}
	if e.DataSchema != "" {
		b = appendEntry(b, "dataschema", ceURIField, []byte(e.DataSchema))
	}
	contentType := e.contentType()
	if contentType != "" {
		b = AppendText(b, "datacontenttype", contentType)
	}
	return e.appendData(e.appendTrace(ctx, b), contentType)
}

// contentType is what the event says of its data; empty: nothing.
func (e *CloudEvent) contentType() string {
	if e.DataContentType == "" && e.Data.kind == jsonData {
		return "application/json"
	}
	return e.DataContentType
}

// appendTrace appends what the span in ctx adds to the event.
func (e *CloudEvent) appendTrace(ctx context.Context, b []byte) []byte {
	parent, state := e.missingTrace(ctx)
	if parent != "" {
		b = AppendText(b, headerTrace, parent)
	}
	if state != "" {
		b = AppendText(b, headerState, state)
	}
	return b
}

// headerState is W3C's tracestate of an event.
const headerState = "tracestate"

// missingTrace is what makes the span in ctx the event's starting trace; empty: nothing, or the
// event has it.
func (e *CloudEvent) missingTrace(ctx context.Context) (parent, state string) {
	span := trace.SpanContextFromContext(ctx)
	if !span.IsValid() {
		return "", ""
	}
	if _, has := e.Extensions[headerTrace]; has {
		return "", ""
	}
	if _, has := e.Extensions[headerState]; !has {
		state = span.TraceState().String()
	}
	if len(state) > MaxTraceState {
		state = ""
	}
	return formatTraceparent(span), state
}

func (e *CloudEvent) appendData(b []byte, contentType string) ([]byte, bool) {
	d := &e.Data
	switch d.kind {
	case jsonData:
		if d.err != nil || !isJSONType(contentType) {
			return nil, false
		}
		return appendBytes(b, binaryDataField, d.bytes), true
	case textData:
		return appendString(b, textDataField, d.text), true
	case binaryData:
		if mediaTypeOf(contentType) != "application/protobuf" {
			return appendBytes(b, binaryDataField, d.bytes), true
		}
		size := sizeOfField(len(e.DataSchema)) + sizeOfField(len(d.bytes))
		b = protowire.AppendVarint(protowire.AppendTag(b, protoDataField, protowire.BytesType), uint64(size))
		if e.DataSchema != "" {
			b = appendString(b, anyTypeURLField, e.DataSchema)
		}
		if len(d.bytes) > 0 {
			b = appendBytes(b, anyValueField, d.bytes)
		}
	}
	return b, true
}

// sizeOfField is what a field of so many bytes takes, which is left out where there are none.
func sizeOfField(n int) int {
	if n == 0 {
		return 0
	}
	return 1 + protowire.SizeBytes(n)
}

func appendString(b []byte, field protowire.Number, s string) []byte {
	return protowire.AppendString(protowire.AppendTag(b, field, protowire.BytesType), s)
}

func appendBytes(b []byte, field protowire.Number, s []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), s)
}

// appendAttribute appends an entry of the attributes.
func appendAttribute(b []byte, name string, value *pb.CloudEventAttributeValue) []byte {
	switch v := value.Attr.(type) {
	case *pb.CloudEventAttributeValue_CeString:
		return AppendText(b, name, v.CeString)
	case *pb.CloudEventAttributeValue_CeBytes:
		return appendEntry(b, name, ceBytesField, v.CeBytes)
	case *pb.CloudEventAttributeValue_CeUri:
		return appendEntry(b, name, ceURIField, []byte(v.CeUri))
	case *pb.CloudEventAttributeValue_CeUriRef:
		return appendEntry(b, name, ceURIRefField, []byte(v.CeUriRef))
	case *pb.CloudEventAttributeValue_CeTimestamp:
		return appendEntry(b, name, ceTimestampField, appendTimestamp(nil, v.CeTimestamp.AsTime()))
	case *pb.CloudEventAttributeValue_CeBoolean:
		return appendNumber(b, name, ceBooleanField, protowire.EncodeBool(v.CeBoolean))
	case *pb.CloudEventAttributeValue_CeInteger:
		return appendNumber(b, name, ceIntegerField, uint64(int64(v.CeInteger)))
	}
	return b
}

// appendEntry appends an entry whose value has one field of bytes.
func appendEntry(b []byte, name string, field protowire.Number, content []byte) []byte {
	b = appendEntryHead(b, name, 1+protowire.SizeBytes(len(content)))
	return appendBytes(b, field, content)
}

// appendNumber appends an entry whose value has one varint.
func appendNumber(b []byte, name string, field protowire.Number, n uint64) []byte {
	b = appendEntryHead(b, name, 1+protowire.SizeVarint(n))
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), n)
}

// appendEntryHead appends an entry but for its value, which is size bytes long. All tags are one
// byte.
func appendEntryHead(b []byte, name string, size int) []byte {
	entry := 1 + protowire.SizeBytes(len(name)) + 1 + protowire.SizeBytes(size)
	b = protowire.AppendVarint(protowire.AppendTag(b, attributesField, protowire.BytesType), uint64(entry))
	b = appendString(b, entryKeyField, name)
	return protowire.AppendVarint(protowire.AppendTag(b, entryValueField, protowire.BytesType), uint64(size))
}

// appendTimestamp appends a google.protobuf.Timestamp.
func appendTimestamp(b []byte, at time.Time) []byte {
	if seconds := at.Unix(); seconds != 0 {
		b = protowire.AppendVarint(protowire.AppendTag(b, secondsField, protowire.VarintType), uint64(seconds))
	}
	if nanos := at.Nanosecond(); nanos != 0 {
		b = protowire.AppendVarint(protowire.AppendTag(b, nanosField, protowire.VarintType), uint64(nanos))
	}
	return b
}
