package producer

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"

	"github.com/waybillhq/waybill/internal/cloudevent"
	"github.com/waybillhq/waybill/pipeline"
)

// Emitter emits from this process. One event goes by Emit or EmitAsync, in turn, and several by
// EmitBatch.
type Emitter struct {
	emitter *pipeline.Emitter
	calls   atomic.Uint64
}

var _ Sender = (*Emitter)(nil)

// NewEmitter returns a sender by an emitter, which the caller runs.
func NewEmitter(emitter *pipeline.Emitter) *Emitter { return &Emitter{emitter: emitter} }

// Send implements Sender.
func (e *Emitter) Send(ctx context.Context, events []*pb.CloudEvent) []error {
	emitted := make([]pipeline.CloudEvent, len(events))
	for i, ce := range events {
		emitted[i] = emittable(ce)
	}
	return all(len(events), readEmitted(e.send(ctx, emitted)))
}

func (e *Emitter) send(ctx context.Context, events []pipeline.CloudEvent) error {
	switch {
	case len(events) > 1:
		return e.emitter.EmitBatch(ctx, events...)
	case e.calls.Add(1)%2 == 0:
		return e.emitter.Emit(ctx, events[0])
	}
	done := make(chan error, 1)
	e.emitter.EmitAsync(ctx, events[0], func(err error) { done <- err })
	return <-done
}

// readEmitted tells a refusal from what may be tried again.
func readEmitted(err error) error {
	var invalid *pipeline.InvalidEventError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &invalid):
		return &RefusedError{Reason: err.Error()}
	default:
		return &TryAgainError{Unknown: errors.Is(err, pipeline.ErrOutcomeUnknown), Err: err}
	}
}

// emittable is ce as an emitter takes it.
func emittable(ce *pb.CloudEvent) pipeline.CloudEvent {
	out := pipeline.CloudEvent{Source: ce.GetSource(), Type: ce.GetType(), ID: ce.GetId(), Extensions: map[string]pipeline.AttributeValue{}}
	for name, value := range ce.GetAttributes() {
		switch name {
		case "subject":
			out.Subject = value.GetCeString()
		case "datacontenttype":
			out.DataContentType = value.GetCeString()
		case "dataschema":
			out.DataSchema = cloudevent.Text(value)
		case "time":
			out.Time = value.GetCeTimestamp().AsTime()
		default:
			out.Extensions[name] = extension(value)
		}
	}
	switch data := ce.GetData().(type) {
	case nil:
	case *pb.CloudEvent_TextData:
		out.Data = pipeline.TextData(data.TextData)
	default:
		out.Data = pipeline.BinaryData(cloudevent.Data(ce))
	}
	return out
}

func extension(value *pb.CloudEventAttributeValue) pipeline.AttributeValue {
	switch v := value.GetAttr().(type) {
	case *pb.CloudEventAttributeValue_CeString:
		return pipeline.StringValue(v.CeString)
	case *pb.CloudEventAttributeValue_CeInteger:
		return pipeline.IntegerValue(v.CeInteger)
	case *pb.CloudEventAttributeValue_CeBoolean:
		return pipeline.BooleanValue(v.CeBoolean)
	case *pb.CloudEventAttributeValue_CeBytes:
		return pipeline.BinaryValue(v.CeBytes)
	case *pb.CloudEventAttributeValue_CeUri:
		return pipeline.URIValue(v.CeUri)
	case *pb.CloudEventAttributeValue_CeUriRef:
		return pipeline.URIReferenceValue(v.CeUriRef)
	case *pb.CloudEventAttributeValue_CeTimestamp:
		return pipeline.TimestampValue(v.CeTimestamp.AsTime())
	}
	return pipeline.AttributeValue{}
}
