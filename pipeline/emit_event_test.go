package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"github.com/google/uuid"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// mustEncode encodes an event and decodes what it became.
func mustEncode(t testing.TB, ctx context.Context, e CloudEvent) (Event, *pb.CloudEvent) {
	t.Helper()
	event, err := encodeEmitted(ctx, &e, DefaultMaxEventBytes, "")
	if err != nil {
		t.Fatal(err)
	}
	ce := &pb.CloudEvent{}
	if err := proto.Unmarshal(event.Encoded, ce); err != nil {
		t.Fatal(err)
	}
	return event, ce
}

// Every field and every type of attribute is what NewEvent makes of the same event as protobuf.
func TestEmittedEventHasEveryAttribute(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.FixedZone("", 7200))
	e := CloudEvent{
		Source: "/orders", Type: "order.created", ID: "o-1", Subject: "o/1", Time: at,
		DataContentType: "text/plain", DataSchema: "https://example.com/s", Data: TextData("grüezi"),
		Extensions: map[string]AttributeValue{
			"text": StringValue(""), "number": IntegerValue(math.MinInt32), "flag": BooleanValue(true),
			"bytes": BinaryValue([]byte{0, 255}), "uri": URIValue("https://example.com"),
			"ref": URIReferenceValue("../a"), "at": TimestampValue(at), "seqnum": StringValue("7"),
		},
	}
	event, got := mustEncode(t, t.Context(), e)
	value := func(v *pb.CloudEventAttributeValue) *pb.CloudEventAttributeValue { return v }
	want := &pb.CloudEvent{
		Id: "o-1", Source: "/orders", Type: "order.created", SpecVersion: "1.0",
		Data: &pb.CloudEvent_TextData{TextData: "grüezi"},
		Attributes: map[string]*pb.CloudEventAttributeValue{
			"subject": attributeString("o/1"), "datacontenttype": attributeString("text/plain"), "dataschema": attributeURI("https://example.com/s"),
			"time":   value(&pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeTimestamp{CeTimestamp: timestamppb.New(at)}}),
			"at":     value(&pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeTimestamp{CeTimestamp: timestamppb.New(at)}}),
			"text":   attributeString(""),
			"number": value(&pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeInteger{CeInteger: math.MinInt32}}),
			"flag":   attributeTrue,
			"bytes":  value(&pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeBytes{CeBytes: []byte{0, 255}}}),
			"uri":    attributeURI("https://example.com"), "ref": attributeURIRef("../a"), "producerseqnum": attributeString("7"),
		},
	}
	if !proto.Equal(got, want) {
		t.Fatalf("encoded as\n%v\nwant\n%v", got, want)
	}
	if event.Source != "/orders" || event.Type != "order.created" || event.ID != "o-1" || event.Fingerprint != newFingerprint("/orders", fingerprintOfID, "o-1") {
		t.Fatalf("is %+v", event)
	}
	if len(e.Extensions) != 8 {
		t.Fatal("the caller's map was changed")
	}
}

func TestEmittedData(t *testing.T) {
	jsonBytes := func(s string) *pb.CloudEvent {
		return &pb.CloudEvent{Data: &pb.CloudEvent_BinaryData{BinaryData: []byte(s)}}
	}
	for name, c := range map[string]struct {
		event       CloudEvent
		want        *pb.CloudEvent
		contentType string
	}{
		"none":         {CloudEvent{}, &pb.CloudEvent{}, ""},
		"binary":       {CloudEvent{Data: BinaryData([]byte{1, 0})}, jsonBytes("\x01\x00"), ""},
		"empty binary": {CloudEvent{Data: BinaryData(nil)}, jsonBytes(""), ""},
		"text":         {CloudEvent{Data: TextData("a")}, &pb.CloudEvent{Data: &pb.CloudEvent_TextData{TextData: "a"}}, ""},
		"json":         {CloudEvent{Data: JSONData(map[string]int{"n": 1})}, jsonBytes(`{"n":1}`), "application/json"},
		"json null":    {CloudEvent{Data: JSONData(nil)}, jsonBytes(`null`), "application/json"},
		"raw json":     {CloudEvent{Data: JSONData(json.RawMessage(`[1]`))}, jsonBytes(`[1]`), "application/json"},
		"other json":   {CloudEvent{Data: JSONData(1), DataContentType: "application/vnd.x+json; a=b"}, jsonBytes(`1`), "application/vnd.x+json; a=b"},
		"protobuf": {
			CloudEvent{Data: BinaryData([]byte("p")), DataContentType: "application/protobuf", DataSchema: "type.example/x"},
			&pb.CloudEvent{Data: &pb.CloudEvent_ProtoData{ProtoData: &anypb.Any{TypeUrl: "type.example/x", Value: []byte("p")}}}, "application/protobuf",
		},
	} {
		t.Run(name, func(t *testing.T) {
			c.event.Source, c.event.Type = "/s", "t"
			_, got := mustEncode(t, t.Context(), c.event)
			if !proto.Equal(&pb.CloudEvent{Data: got.Data}, c.want) {
				t.Errorf("data is %v, want %v", got.Data, c.want.Data)
			}
			if contentType := got.Attributes["datacontenttype"].GetCeString(); contentType != c.contentType {
				t.Errorf("content type %q, want %q", contentType, c.contentType)
			}
		})
	}
}

func TestEmittedEventGetsAnID(t *testing.T) {
	first, _ := mustEncode(t, t.Context(), CloudEvent{Source: "/s", Type: "t"})
	second, _ := mustEncode(t, t.Context(), CloudEvent{Source: "/s", Type: "t"})
	if id, err := uuid.Parse(first.ID); err != nil || id.Version() != 4 {
		t.Errorf("the id is %q, want a random UUID", first.ID)
	}
	if first.ID == second.ID {
		t.Error("two events have the same id")
	}
}

// A span in the context is the starting trace, unless the event has one.
func TestSpanBecomesTraceparent(t *testing.T) {
	state, err := trace.ParseTraceState("a=b")
	if err != nil {
		t.Fatal(err)
	}
	span := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled, TraceState: state})
	ctx := trace.ContextWithSpanContext(t.Context(), span)
	_, got := mustEncode(t, ctx, CloudEvent{Source: "/s", Type: "t"})
	if parent := got.Attributes["traceparent"].GetCeString(); parent != "00-01000000000000000000000000000000-0200000000000000-01" {
		t.Errorf("traceparent is %q", parent)
	}
	if s := got.Attributes["tracestate"].GetCeString(); s != "a=b" {
		t.Errorf("tracestate is %q", s)
	}
	_, got = mustEncode(t, ctx, CloudEvent{Source: "/s", Type: "t", Extensions: map[string]AttributeValue{"traceparent": StringValue("own")}})
	if parent := got.Attributes["traceparent"].GetCeString(); parent != "own" || got.Attributes["tracestate"] != nil {
		t.Errorf("an event's own trace became %q, %v", parent, got.Attributes["tracestate"])
	}
	_, got = mustEncode(t, t.Context(), CloudEvent{Source: "/s", Type: "t"})
	if len(got.Attributes) != 0 {
		t.Errorf("without a span: %v", got.Attributes)
	}
}

// What is invalid is refused by the name of the attribute, with what would mend it.
func TestInvalidEmittedEvents(t *testing.T) {
	valid := CloudEvent{Source: "/s", Type: "t", ID: "1"}
	for name, c := range map[string]struct {
		change          func(*CloudEvent)
		attribute, text string
	}{
		"source":        {func(e *CloudEvent) { e.Source = "" }, "source", "required"},
		"source syntax": {func(e *CloudEvent) { e.Source = "%zz" }, "source", "URI reference"},
		"type":          {func(e *CloudEvent) { e.Type = strings.Repeat("t", MaxTypeBytes+1) }, "type", "limit is 512"},
		"id":            {func(e *CloudEvent) { e.ID = "a\x00" }, "id", "NUL"},
		"subject":       {func(e *CloudEvent) { e.Subject = "\xff" }, "subject", "UTF-8"},
		"time":          {func(e *CloudEvent) { e.Time = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC) }, "time", "years 1 to 9999"},
		"content type":  {func(e *CloudEvent) { e.DataContentType = "a/b/c" }, "datacontenttype", "media type"},
		"schema":        {func(e *CloudEvent) { e.DataSchema = "%zz" }, "dataschema", "URI"},
		"text":          {func(e *CloudEvent) { e.Data = TextData("\xff") }, "data", "UTF-8"},
		"no json":       {func(e *CloudEvent) { e.Data = JSONData(math.NaN()) }, "data", "JSON"},
		"broken json":   {func(e *CloudEvent) { e.Data = JSONData(json.RawMessage(`{`)) }, "data", "JSON"},
		"json as text":  {func(e *CloudEvent) { e.Data, e.DataContentType = JSONData(1), "text/plain" }, "datacontenttype", "leave the content type out"},
		"name":          {func(e *CloudEvent) { e.Extensions = map[string]AttributeValue{"Upper": StringValue("")} }, "Upper", "lower-case"},
		"no value":      {func(e *CloudEvent) { e.Extensions = map[string]AttributeValue{"x": {}} }, "x", "has no value"},
		"field":         {func(e *CloudEvent) { e.Extensions = map[string]AttributeValue{"subject": StringValue("s")} }, "subject", "set the event's Subject"},
		"id attribute":  {func(e *CloudEvent) { e.Extensions = map[string]AttributeValue{"id": StringValue("s")} }, "id", "must be a field"},
		"too large":     {func(e *CloudEvent) { e.Data = BinaryData(make([]byte, 2000)) }, "data", "limit is 1500"},
	} {
		t.Run(name, func(t *testing.T) {
			e := valid
			c.change(&e)
			_, err := encodeEmitted(t.Context(), &e, 1500, "")
			var fault *InvalidEventError
			if !errors.As(err, &fault) || fault.Attribute != c.attribute || !strings.Contains(err.Error(), c.text) || fault.TooLarge != (name == "too large") {
				t.Errorf("got %v, want %s: … %s", err, c.attribute, c.text)
			}
			if _, err := encodeAllEmitted(t.Context(), []CloudEvent{valid, e}, 1500, ""); err == nil || !strings.HasSuffix(err.Error(), "(event 2 of 2)") {
				t.Errorf("of two: %v", err)
			}
		})
	}
}

// An attribute can say which events are the same.
func TestEmittedEventIsIdentifiedBy(t *testing.T) {
	e := CloudEvent{Source: "/s", Type: "t", ID: "1", Extensions: map[string]AttributeValue{"key": StringValue("k")}}
	event, err := encodeEmitted(t.Context(), &e, DefaultMaxEventBytes, "key")
	if err != nil || event.Fingerprint != newFingerprint("/s", fingerprintOfAttribute, "k") {
		t.Errorf("%v, %v", event.Fingerprint, err)
	}
}
