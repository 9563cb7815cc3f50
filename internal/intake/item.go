package intake

import (
	"errors"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"

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
