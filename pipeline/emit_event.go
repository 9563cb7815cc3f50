package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// CloudEvent is an event as a program emits it. Its fields are the attributes that CloudEvents
// 1.0 defines, and its data. Source and Type are required; all else may be left out.
type CloudEvent struct {
	// Source says where the event comes from: a URI reference such as /orders or
	// https://example.com/orders, of at most MaxSourceBytes.
	Source string
	// Type says what kind of event it is, such as com.example.order.created, in at most
	// MaxTypeBytes. Events of the same source and type are in order.
	Type string
	// ID tells the event from all others of its source, in at most MaxIDBytes. Empty: a random
	// UUID. Whoever emits an event again, since its outcome was unknown, gives it the same id:
	// then it is stored once.
	ID string
	// Subject is what of the source the event is about. Empty: none.
	Subject string
	// Time is when it happened, in the years 1 to 9999. Zero: not said.
	Time time.Time
	// DataContentType is the media type of the data, as of RFC 2046. Empty: application/json for
	// JSONData, else not said.
	DataContentType string
	// DataSchema is the URI of the schema of the data. Empty: none.
	DataSchema string
	// Data is what BinaryData, TextData or JSONData made. Its zero value: none.
	Data Data
	// Extensions are further attributes by name, which is of lower-case letters a-z and digits.
	// A seqnum among them moves to producerseqnum: seqnum is Waybill's own.
	Extensions map[string]AttributeValue
}

// Data is the data of a CloudEvent. The zero value is none, which is not the same as empty data.
type Data struct {
	kind  dataKind
	bytes []byte
	text  string
	err   error // why there is none
}

type dataKind uint8

const (
	noData dataKind = iota
	binaryData
	textData
	jsonData
)

// BinaryData is bytes of any kind. They are copied when the event is emitted. Under the content
// type application/protobuf they travel as proto_data, whose type URL is the event's DataSchema.
func BinaryData(data []byte) Data { return Data{kind: binaryData, bytes: data} }

// TextData is text in UTF-8.
func TextData(text string) Data { return Data{kind: textData, text: text} }

// JSONData is value as encoding/json writes it; a json.RawMessage is checked. Emitting the
// event fails if there is no JSON for it. Unless the event says otherwise its content type is
// application/json.
func JSONData(value any) Data {
	encoded, err := json.Marshal(value)
	return Data{kind: jsonData, bytes: encoded, err: err}
}

// AttributeValue is the value of an extension attribute, of one of CloudEvents' types. The zero
// value is none, and an event with it is invalid.
type AttributeValue struct{ value *pb.CloudEventAttributeValue }

// StringValue is text in UTF-8.
func StringValue(text string) AttributeValue {
	return AttributeValue{stringAttribute(text)}
}

// IntegerValue is a CloudEvents Integer, which has 32 bits.
func IntegerValue(n int32) AttributeValue {
	return AttributeValue{&pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeInteger{CeInteger: n}}}
}

// BooleanValue is true or false.
func BooleanValue(b bool) AttributeValue {
	return AttributeValue{&pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeBoolean{CeBoolean: b}}}
}

// BinaryValue is a sequence of bytes. They are copied when the event is emitted.
func BinaryValue(data []byte) AttributeValue {
	return AttributeValue{&pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeBytes{CeBytes: data}}}
}

// URIValue is an absolute URI. Its syntax is not checked.
func URIValue(uri string) AttributeValue {
	return AttributeValue{&pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeUri{CeUri: uri}}}
}

// URIReferenceValue is a URI reference. Its syntax is not checked.
func URIReferenceValue(uri string) AttributeValue {
	return AttributeValue{&pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeUriRef{CeUriRef: uri}}}
}

// TimestampValue is a moment of the years 1 to 9999, to the nanosecond.
func TimestampValue(at time.Time) AttributeValue {
	return AttributeValue{timestampAttribute(at)}
}

func stringAttribute(text string) *pb.CloudEventAttributeValue {
	return &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeString{CeString: text}}
}

func timestampAttribute(at time.Time) *pb.CloudEventAttributeValue {
	return &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeTimestamp{CeTimestamp: timestamppb.New(at)}}
}

// MaxTraceState is how long a tracestate may be, in bytes, that becomes an attribute of an event
// by itself. The standard lets longer ones be dropped. It goes into every event of a request.
const MaxTraceState = 512

// encodeEmitted checks e and encodes it. The span in ctx becomes the event's starting trace, unless it
// has a traceparent. maxBytes bounds the encoding; identifyBy is the pipeline's dedupe
// attribute, empty for none. The error is an *InvalidEventError that names the attribute. Nothing
// of e is kept but strings.
func encodeEmitted(ctx context.Context, e *CloudEvent, maxBytes int, identifyBy string) (Event, error) {
	if event, ok := e.encode(ctx, maxBytes, identifyBy); ok {
		return event, nil
	}
	// It is invalid, and NewEvent says why, or it takes NewEvent to make it.
	ce, err := e.message(ctx)
	if err != nil {
		return Event{}, err
	}
	event, err := NewEvent(ce, maxBytes)
	if err != nil {
		return Event{}, err
	}
	if identifyBy != "" {
		event.IdentifyBy(ce, identifyBy)
	}
	return event, nil
}

// encodeAllEmitted encodes the events of one call. An error names the place of the event, if there
// are several.
func encodeAllEmitted(ctx context.Context, events []CloudEvent, maxBytes int, identifyBy string) ([]Event, error) {
	encoded := make([]Event, len(events))
	for i := range events {
		var err error
		if encoded[i], err = encodeEmitted(ctx, &events[i], maxBytes, identifyBy); err != nil {
			return nil, eventError(i, len(events), err)
		}
	}
	return encoded, nil
}

// eventError says which of several events is invalid.
func eventError(i, events int, err error) error {
	var fault *InvalidEventError
	if events == 1 || !errors.As(err, &fault) {
		return err
	}
	return &InvalidEventError{
		Attribute: fault.Attribute, TooLarge: fault.TooLarge,
		Reason: fmt.Sprintf("%s (event %d of %d)", fault.Reason, i+1, events),
	}
}

// message is e as protobuf, with an id.
func (e *CloudEvent) message(ctx context.Context) (*pb.CloudEvent, error) {
	ce := &pb.CloudEvent{Id: e.ID, Source: e.Source, Type: e.Type, SpecVersion: "1.0"}
	if ce.Id == "" {
		id, err := uuid.NewRandom()
		if err != nil {
			return nil, invalid("id", "cannot be made: %v", err)
		}
		ce.Id = id.String()
	}
	if err := e.addAttributes(ctx, ce); err != nil {
		return nil, err
	}
	return ce, e.addData(ce)
}

// definedFields are the attributes that have a field of their own beside those that Event has.
var definedFields = map[string]string{
	"subject": "Subject", "time": "Time", "datacontenttype": "DataContentType", "dataschema": "DataSchema",
}

func (e *CloudEvent) addAttributes(ctx context.Context, ce *pb.CloudEvent) error {
	ce.Attributes = make(map[string]*pb.CloudEventAttributeValue, len(e.Extensions)+4)
	for name, v := range e.Extensions {
		if field, defined := definedFields[name]; defined {
			return invalid(name, "is not an extension; set the event's %s instead", field)
		}
		ce.Attributes[name] = v.value
	}
	if e.Subject != "" {
		ce.Attributes["subject"] = stringAttribute(e.Subject)
	}
	if !e.Time.IsZero() {
		ce.Attributes["time"] = timestampAttribute(e.Time)
	}
	if e.DataSchema != "" {
		ce.Attributes["dataschema"] = URIValue(e.DataSchema).value
	}
	if contentType := e.contentType(); contentType != "" {
		ce.Attributes["datacontenttype"] = stringAttribute(contentType)
	}
	parent, state := e.missingTrace(ctx)
	if parent != "" {
		ce.Attributes[headerTrace] = stringAttribute(parent)
	}
	if state != "" {
		ce.Attributes[headerState] = stringAttribute(state)
	}
	return nil
}

func (e *CloudEvent) addData(ce *pb.CloudEvent) error {
	d := &e.Data
	if d.err != nil {
		return invalid("data", "cannot be written as JSON: %v", d.err)
	}
	switch d.kind {
	case jsonData:
		if !isJSONType(ce.Attributes["datacontenttype"].GetCeString()) {
			return invalid("datacontenttype", "is %q, and the data was made by JSONData; leave the content type out, or use BinaryData or TextData", e.DataContentType)
		}
		ce.Data = &pb.CloudEvent_BinaryData{BinaryData: d.bytes}
	case textData:
		ce.Data = &pb.CloudEvent_TextData{TextData: d.text}
	case binaryData:
		if mediaTypeOf(e.DataContentType) == "application/protobuf" {
			ce.Data = &pb.CloudEvent_ProtoData{ProtoData: &anypb.Any{TypeUrl: e.DataSchema, Value: d.bytes}}
			return nil
		}
		ce.Data = &pb.CloudEvent_BinaryData{BinaryData: d.bytes}
	}
	return nil
}

// isJSONType reports whether data of a content type is JSON.
func isJSONType(contentType string) bool {
	media := mediaTypeOf(contentType)
	return media == "application/json" || media == "text/json" || strings.HasSuffix(media, "+json")
}

// mediaTypeOf is the lower-case type/subtype of a content type.
func mediaTypeOf(contentType string) string {
	media, _, _ := strings.Cut(contentType, ";")
	return strings.ToLower(strings.TrimSpace(media))
}
