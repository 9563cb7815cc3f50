package intake

import (
	"context"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"go.opentelemetry.io/otel/propagation"

	"github.com/waybillhq/waybill/pipeline"
)

const (
	traceParent = "traceparent"
	traceState  = "tracestate"
)

// traceContext is the W3C trace context of a request; empty if it came with none.
type traceContext struct{ parent, state string }

// traceOf reads the headers of a request. What is malformed counts as absent, as the
// trace context standard wants it.
func traceOf(header propagation.TextMapCarrier) traceContext {
	if header.Get(traceParent) == "" {
		return traceContext{}
	}
	var standard propagation.TraceContext
	checked := propagation.MapCarrier{}
	standard.Inject(standard.Extract(context.Background(), header), checked)
	trace := traceContext{parent: checked[traceParent], state: checked[traceState]}
	if len(trace.state) > pipeline.MaxTraceState {
		trace.state = ""
	}
	return trace
}

// addTo makes the request's trace the event's starting trace, unless the event has one.
func (t traceContext) addTo(ce *pb.CloudEvent) {
	if t.parent == "" || ce == nil {
		return
	}
	if _, has := ce.Attributes[traceParent]; has {
		return
	}
	if ce.Attributes == nil {
		ce.Attributes = make(map[string]*pb.CloudEventAttributeValue, 2)
	}
	ce.Attributes[traceParent] = stringValue(t.parent)
	if _, has := ce.Attributes[traceState]; !has && t.state != "" {
		ce.Attributes[traceState] = stringValue(t.state)
	}
}

// missing returns what addTo would add to the event that was scanned, empty for nothing.
func (t traceContext) missing(event *pipeline.Scan) (parent, state string) {
	if t.parent == "" || event.Has(traceParent) {
		return "", ""
	}
	if event.Has(traceState) {
		return t.parent, ""
	}
	return t.parent, t.state
}

func stringValue(s string) *pb.CloudEventAttributeValue {
	return &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeString{CeString: s}}
}
