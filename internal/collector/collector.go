// Package collector receives spans and metrics by OTLP over gRPC and keeps them in memory, for
// measuring and for tests.
package collector

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	metricscollectorpb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	metricspb "go.opentelemetry.io/proto/otlp/metrics/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
)

// Span is one that has ended.
type Span struct {
	TraceID, ID string // hexadecimal
	Parent      string // of the same trace; empty: none
	Name        string
	Service     string // service.name
	Kind        tracepb.Span_SpanKind
	Start, End  time.Time
	Failure     string // of a status that is an error
	Attributes  map[string]string
	Links       []Link
}

// Link names another span.
type Link struct{ TraceID, ID string }

// Took is the span's length.
func (s *Span) Took() time.Duration { return s.End.Sub(s.Start) }

// Collector is a server that keeps the spans it gets.
type Collector struct {
	collectorpb.UnimplementedTraceServiceServer

	server *grpc.Server
	addr   string
	ended  chan error
	most   int

	mu      sync.Mutex // guards what follows
	spans   []Span
	dropped int
	metrics map[string]map[string]*metricspb.Metric // newest, by service and name
}

var _ collectorpb.TraceServiceServer = (*Collector)(nil)

// maxRequestBytes is above what an exporter sends at once.
const maxRequestBytes = 64 << 20

// Start listens on host:port and keeps at most most spans, the first ones.
func Start(addr string, most int) (*Collector, error) {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for spans on %s: %w", addr, err)
	}
	c := &Collector{addr: listener.Addr().String(), ended: make(chan error, 1), most: most, metrics: map[string]map[string]*metricspb.Metric{}, server: grpc.NewServer(grpc.MaxRecvMsgSize(maxRequestBytes))}
	collectorpb.RegisterTraceServiceServer(c.server, c)
	metricscollectorpb.RegisterMetricsServiceServer(c.server, &metricsService{collector: c})
	go func() { c.ended <- c.server.Serve(listener) }()
	return c, nil
}

// Env are the variables that let a process send all its spans here soon, of a part of the
// traces: 1 is all.
func (c *Collector) Env(ratio float64) []string {
	return []string{
		"OTEL_TRACES_EXPORTER=otlp", "OTEL_EXPORTER_OTLP_ENDPOINT=http://" + c.addr, "OTEL_EXPORTER_OTLP_PROTOCOL=grpc",
		"OTEL_TRACES_SAMPLER=parentbased_traceidratio", fmt.Sprintf("OTEL_TRACES_SAMPLER_ARG=%g", ratio),
		"OTEL_METRICS_EXPORTER=none",
		// Spans of one event are looked for together: none may be dropped, or come late.
		"OTEL_BSP_SCHEDULE_DELAY=200", "OTEL_BSP_MAX_QUEUE_SIZE=65536",
	}
}

// Close ends the server.
func (c *Collector) Close() error {
	c.server.Stop()
	if err := <-c.ended; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve spans: %w", err)
	}
	return nil
}

// Spans returns what has come so far, and how many were dropped for want of room.
func (c *Collector) Spans() (spans []Span, dropped int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.spans), c.dropped
}

// Trace returns the spans of a trace that have come so far, by their beginning.
func (c *Collector) Trace(id string) []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []Span
	for i := range c.spans {
		if c.spans[i].TraceID == id {
			out = append(out, c.spans[i])
		}
	}
	slices.SortStableFunc(out, func(a, b Span) int { return a.Start.Compare(b.Start) })
	return out
}

// Export implements collectorpb.TraceServiceServer.
func (c *Collector) Export(_ context.Context, request *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	var spans []Span
	for _, resource := range request.GetResourceSpans() {
		service := attributesOf(resource.GetResource().GetAttributes())["service.name"]
		for _, scope := range resource.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				spans = append(spans, spanOf(service, s))
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	room := min(len(spans), c.most-len(c.spans))
	c.spans = append(c.spans, spans[:room]...)
	c.dropped += len(spans) - room
	return &collectorpb.ExportTraceServiceResponse{}, nil
}

func spanOf(service string, s *tracepb.Span) Span {
	out := Span{
		TraceID: hex.EncodeToString(s.GetTraceId()), ID: hex.EncodeToString(s.GetSpanId()), Parent: hex.EncodeToString(s.GetParentSpanId()),
		Name: s.GetName(), Service: service, Kind: s.GetKind(),
		Start: time.Unix(0, int64(s.GetStartTimeUnixNano())), End: time.Unix(0, int64(s.GetEndTimeUnixNano())),
		Attributes: attributesOf(s.GetAttributes()),
	}
	if s.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR {
		out.Failure = s.GetStatus().GetMessage()
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
