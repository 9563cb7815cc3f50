package producer

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/waybillhq/waybill/pipeline"
)

// An emitter that does not run stores nothing, and says so of each event.
func TestEmitterThatDoesNotRun(t *testing.T) {
	emitter, err := pipeline.NewEmitter(pipeline.DefaultEmitterConfig("postgres://db/waybill", "nats://nats:4222"))
	if err != nil {
		t.Fatal(err)
	}
	sender := NewEmitter(emitter)
	ce := &pb.CloudEvent{Id: "1", Source: "/s", Type: "t"}
	for _, events := range [][]*pb.CloudEvent{{ce}, {ce}, {ce, ce}} { // Emit and EmitAsync in turn, and EmitBatch
		errs := sender.Send(t.Context(), events)
		if len(errs) != len(events) {
			t.Fatalf("%d answers to %d events", len(errs), len(events))
		}
		for _, err := range errs {
			var again *TryAgainError
			if !errors.As(err, &again) || again.Unknown || !errors.Is(err, pipeline.ErrNotRunning) {
				t.Errorf("got %v", err)
			}
		}
	}
	if err := readEmitted(&pipeline.InvalidEventError{Attribute: "id"}); !errors.As(err, new(*RefusedError)) {
		t.Errorf("an invalid event is %v", err)
	}
	var again *TryAgainError
	if err := readEmitted(pipeline.ErrOutcomeUnknown); !errors.As(err, &again) || !again.Unknown {
		t.Errorf("an unknown outcome is %v", err)
	}
}

// What is emitted is the event that was to be sent.
func TestEmittable(t *testing.T) {
	at := time.Date(2026, 11, 30, 8, 0, 0, 5e8, time.UTC)
	attributes := map[string]*pb.CloudEventAttributeValue{
		"subject": text("s"), "datacontenttype": text("application/protobuf"), "text": text("y"),
		"dataschema": {Attr: &pb.CloudEventAttributeValue_CeUri{CeUri: "urn:schema"}},
		"time":       {Attr: &pb.CloudEventAttributeValue_CeTimestamp{CeTimestamp: timestamppb.New(at)}},
		"number":     {Attr: &pb.CloudEventAttributeValue_CeInteger{CeInteger: -7}},
		"flag":       {Attr: &pb.CloudEventAttributeValue_CeBoolean{CeBoolean: true}},
		"raw":        {Attr: &pb.CloudEventAttributeValue_CeBytes{CeBytes: []byte{0, 1}}},
		"uri":        {Attr: &pb.CloudEventAttributeValue_CeUri{CeUri: "urn:x"}},
		"ref":        {Attr: &pb.CloudEventAttributeValue_CeUriRef{CeUriRef: "../x"}},
		"when":       {Attr: &pb.CloudEventAttributeValue_CeTimestamp{CeTimestamp: timestamppb.New(at)}},
	}
	want := pipeline.CloudEvent{
		Source: "/s", Type: "t", ID: "1", Subject: "s", DataContentType: "application/protobuf", DataSchema: "urn:schema", Time: at,
		Extensions: map[string]pipeline.AttributeValue{
			"text": pipeline.StringValue("y"), "number": pipeline.IntegerValue(-7), "flag": pipeline.BooleanValue(true),
			"raw": pipeline.BinaryValue([]byte{0, 1}), "uri": pipeline.URIValue("urn:x"), "ref": pipeline.URIReferenceValue("../x"),
			"when": pipeline.TimestampValue(at),
		},
	}
	for _, c := range []struct {
		ce   *pb.CloudEvent
		data pipeline.Data
	}{
		{&pb.CloudEvent{Data: &pb.CloudEvent_ProtoData{ProtoData: &anypb.Any{Value: []byte("p")}}}, pipeline.BinaryData([]byte("p"))},
		{&pb.CloudEvent{Data: &pb.CloudEvent_BinaryData{BinaryData: []byte("b")}}, pipeline.BinaryData([]byte("b"))},
		{&pb.CloudEvent{Data: &pb.CloudEvent_BinaryData{}}, pipeline.BinaryData(nil)},
		{&pb.CloudEvent{Data: &pb.CloudEvent_TextData{TextData: "x"}}, pipeline.TextData("x")},
		{&pb.CloudEvent{}, pipeline.Data{}},
	} {
		c.ce.Id, c.ce.Source, c.ce.Type, c.ce.Attributes = "1", "/s", "t", attributes
		want.Data = c.data
		if got := emittable(c.ce); !reflect.DeepEqual(got, want) {
			t.Errorf("it is emitted as %+v\nwant %+v", got, want)
		}
	}
}
