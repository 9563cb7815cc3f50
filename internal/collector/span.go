package collector

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"time"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
)

// Span is one that has ended.
type Span struct {
	TraceID, ID string // hexadecimal
	Parent      string // of the same trace; empty: none
	Name        string
	Service     string // service.name
	Instance    string // service.instance.id
	Kind        tracepb.Span_SpanKind
	Start, End  time.Time
	Failure     string // what the status says, if it is an error; empty: it is none
	Attributes  map[string]string
	Links       []Link
}

// Link names another span.
type Link struct{ TraceID, ID string }

// Took is the span's length.
func (s *Span) Took() time.Duration { return s.End.Sub(s.Start) }

// spanOf is a span of the process that resource describes.
func spanOf(resource map[string]string, s *tracepb.Span) Span {
	out := Span{
		TraceID: hex.EncodeToString(s.GetTraceId()), ID: hex.EncodeToString(s.GetSpanId()), Parent: hex.EncodeToString(s.GetParentSpanId()),
		Name: s.GetName(), Service: resource["service.name"], Instance: resource["service.instance.id"], Kind: s.GetKind(),
		Start: time.Unix(0, int64(s.GetStartTimeUnixNano())), End: time.Unix(0, int64(s.GetEndTimeUnixNano())),
		Attributes: attributesOf(s.GetAttributes()),
	}
	if s.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR {
		out.Failure = cmp.Or(s.GetStatus().GetMessage(), "error")
	}
	for _, link := range s.GetLinks() {
		out.Links = append(out.Links, Link{hex.EncodeToString(link.GetTraceId()), hex.EncodeToString(link.GetSpanId())})
	}
	return out
}

// attributesOf are the attributes as text.
func attributesOf(list []*commonpb.KeyValue) map[string]string {
	out := make(map[string]string, len(list))
	for _, a := range list {
		switch v := a.GetValue().GetValue().(type) {
		case *commonpb.AnyValue_StringValue:
			out[a.GetKey()] = v.StringValue
		case *commonpb.AnyValue_IntValue:
			out[a.GetKey()] = fmt.Sprint(v.IntValue)
		case *commonpb.AnyValue_BoolValue:
			out[a.GetKey()] = fmt.Sprint(v.BoolValue)
		case *commonpb.AnyValue_DoubleValue:
			out[a.GetKey()] = fmt.Sprint(v.DoubleValue)
		}
	}
	return out
}
