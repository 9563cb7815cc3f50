package pipeline

import (
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// What an event costs that is looked at and not sampled: without a traceparent, and with one.
func BenchmarkTracingUnsampled(b *testing.B) {
	none := NewTracing(noop.NewTracerProvider(), func(trace.SpanContext, trace.TraceID) bool { return false })
	for _, c := range []struct {
		name    string
		tracing *Tracing
		parent  string
	}{{"off", nil, someParent}, {"own", none, ""}, {"parent", none, someParent}} {
		b.Run(c.name, func(b *testing.B) {
			ce := &pb.CloudEvent{
				Id: "0af7651916cd43dd", Source: "/bench/source", Type: "bench.type", SpecVersion: "1.0",
				Data: &pb.CloudEvent_TextData{TextData: strings.Repeat("x", 256)},
			}
			if c.parent != "" {
				ce.Attributes = map[string]*pb.CloudEventAttributeValue{"traceparent": {Attr: &pb.CloudEventAttributeValue_CeString{CeString: c.parent}}}
			}
			event, err := NewEvent(ce, DefaultMaxEventBytes)
			if err != nil {
				b.Fatal(err)
			}
			events, now := []Event{event}, time.Now()
			b.ReportAllocs()
			for b.Loop() {
				c.tracing.Accept("grpc", now, events).Answered(nil)
			}
		})
	}
}
