package producer

import (
	"errors"
	"testing"

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
	text := func(s string) *pb.CloudEventAttributeValue {
		return &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeString{CeString: s}}
	}
	at := timestamppb.Now()
	got := emittable(&pb.CloudEvent{
		Id: "1", Source: "/s", Type: "t", Data: &pb.CloudEvent_ProtoData{ProtoData: &anypb.Any{Value: []byte("p")}},
		Attributes: map[string]*pb.CloudEventAttributeValue{
			"subject": text("s"), "datacontenttype": text("application/protobuf"), "x": text("y"),
			"time": {Attr: &pb.CloudEventAttributeValue_CeTimestamp{CeTimestamp: at}},
		},
	})
	if got.ID != "1" || got.Source != "/s" || got.Type != "t" || got.Subject != "s" || got.DataContentType != "application/protobuf" ||
		!got.Time.Equal(at.AsTime()) || len(got.Extensions) != 1 {
		t.Errorf("it is emitted as %+v", got)
	}
}
