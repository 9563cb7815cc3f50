package intake

import (
	"errors"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/protobuf/proto"

	"github.com/waybillhq/waybill/pipeline"
)

// item is one event of a request as it was read: either an event that can be submitted or
// the fault that keeps it out.
type item struct {
	id    string // as far as it could be read
	event pipeline.Event
	fault *pipeline.InvalidEventError
}

// encoder turns what a front read into items.
type encoder struct {
	maxEventBytes   int
	dedupeAttribute string // "": none
	trace           traceContext

	scan  pipeline.Scan
	arena arena // of the events that are kept as they came
}

// item checks and encodes ce. A fault found while ce was read comes first.
func (e *encoder) item(ce *pb.CloudEvent, fault *pipeline.InvalidEventError) item {
	it := item{id: ce.GetId(), fault: fault}
	if fault != nil {
		return it
	}
	e.trace.addTo(ce)
	event, err := pipeline.NewEvent(ce, e.maxEventBytes)
	if err != nil {
		it.fault = asFault(err)
		return it
	}
	if e.dedupeAttribute != "" {
		event.IdentifyBy(ce, e.dedupeAttribute)
	}
	it.event = event
	return it
}

// protobuf reads one event in the CloudEvents protobuf format. The item keeps nothing of
// encoded.
func (e *encoder) protobuf(encoded []byte) item {
	if it, ok := e.kept(encoded); ok {
		return it
	}
	ce := new(pb.CloudEvent)
	if err := proto.Unmarshal(encoded, ce); err != nil {
		return item{fault: faultOf("event", "is not a valid encoding of io.cloudevents.v1.CloudEvent")}
	}
	return e.item(ce, nil)
}

// kept returns the item of an event that can be stored as it came, which costs much less than
// to decode it and to encode it again. It is false for all others, valid or not.
func (e *encoder) kept(encoded []byte) (item, bool) {
	defer e.scan.Forget() // a stream's encoder stays while the stream is idle, and encoded must not
	if !e.scan.Read(encoded) {
		return item{}, false
	}
	parent, state := e.trace.missing(&e.scan)
	size := len(encoded)
	if parent != "" {
		size += pipeline.TextSize(traceParent, parent)
	}
	if state != "" {
		size += pipeline.TextSize(traceState, state)
	}
	event, ok := e.scan.Event(e.dedupeAttribute)
	if !ok || size > e.maxEventBytes {
		return item{}, false
	}
	event.Encoded = append(e.arena.take(size), encoded...)
	if parent != "" {
		event.Encoded = pipeline.AppendText(event.Encoded, traceParent, parent)
	}
	if state != "" {
		event.Encoded = pipeline.AppendText(event.Encoded, traceState, state)
	}
	return item{id: event.ID, event: event}, true
}

func asFault(err error) *pipeline.InvalidEventError {
	var fault *pipeline.InvalidEventError
	if errors.As(err, &fault) {
		return fault
	}
	return &pipeline.InvalidEventError{Attribute: "event", Reason: err.Error()}
}

func faultOf(attribute, reason string) *pipeline.InvalidEventError {
	return &pipeline.InvalidEventError{Attribute: attribute, Reason: reason}
}

// countFaults returns how many items have a fault, and how many of those are too large.
func countFaults(items []item) (faults, tooLarge int) {
	for i := range items {
		if items[i].fault == nil {
			continue
		}
		faults++
		if items[i].fault.TooLarge {
			tooLarge++
		}
	}
	return faults, tooLarge
}
