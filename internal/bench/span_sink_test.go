package bench

import (
	"testing"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func TestSpansAreCounted(t *testing.T) {
	sink, err := startSpanSink()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := sink.close(); err != nil {
			t.Error(err)
		}
	}()
	conn, err := grpc.NewClient(sink.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	scope := func(n int) *tracepb.ScopeSpans {
		out := &tracepb.ScopeSpans{SchemaUrl: "s"}
		for range n {
			out.Spans = append(out.Spans, &tracepb.Span{Name: "a span", Links: []*tracepb.Span_Link{{}}})
		}
		return out
	}
	request := &collectorpb.ExportTraceServiceRequest{ResourceSpans: []*tracepb.ResourceSpans{
		{ScopeSpans: []*tracepb.ScopeSpans{scope(3), scope(0), scope(4)}}, {ScopeSpans: []*tracepb.ScopeSpans{scope(5)}},
	}}
	for range 2 {
		if _, err := collectorpb.NewTraceServiceClient(conn).Export(t.Context(), request); err != nil {
			t.Fatal(err)
		}
	}
	if got := sink.settled(t.Context(), 12); got != 12 {
		t.Errorf("%d spans came since the first request, want 12", got)
	}
}

func TestTracedPartsAreNamed(t *testing.T) {
	for part, want := range map[float64]string{tracingOff: "tracing off", 0: "0 % traced", 0.01: "1 % traced", 1: "100 % traced"} {
		if got := tracedPartName(part); got != want {
			t.Errorf("%g: %q, want %q", part, got, want)
		}
	}
}
