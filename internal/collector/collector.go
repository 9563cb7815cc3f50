package collector

import (
	"fmt"
	"slices"
	"sync"

	metricscollectorpb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	metricspb "go.opentelemetry.io/proto/otlp/metrics/v1"
	"google.golang.org/grpc"
)

// Collector is a receiver that keeps the first spans it gets.
type Collector struct {
	*Receiver
	most int

	mu      sync.Mutex // guards what follows
	spans   []Span
	dropped int
	metrics map[string]map[string]*metricspb.Metric // newest, by service and name
}

// Start listens on host:port and keeps at most most spans, the first ones.
func Start(addr string, most int) (*Collector, error) {
	c := &Collector{most: most, metrics: map[string]map[string]*metricspb.Metric{}}
	var err error
	c.Receiver, err = Listen(addr, c.add, func(server grpc.ServiceRegistrar) {
		metricscollectorpb.RegisterMetricsServiceServer(server, &metricsService{collector: c})
	})
	return c, err
}

// Env are the variables that let a process send all its spans here soon, of a part of the
// traces: 1 is all.
func (c *Collector) Env(ratio float64) []string {
	return append(c.Receiver.Env(),
		"OTEL_TRACES_SAMPLER=parentbased_traceidratio", fmt.Sprintf("OTEL_TRACES_SAMPLER_ARG=%g", ratio),
		"OTEL_METRICS_EXPORTER=none",
		// Spans of one event are looked for together: none may be dropped, or come late.
		"OTEL_BSP_SCHEDULE_DELAY=200", "OTEL_BSP_MAX_QUEUE_SIZE=65536")
}

func (c *Collector) add(spans []Span) {
	c.mu.Lock()
	defer c.mu.Unlock()
	room := min(len(spans), c.most-len(c.spans))
	c.spans = append(c.spans, spans[:room]...)
	c.dropped += len(spans) - room
}

// Spans returns what has come so far, and how many were dropped for want of room.
func (c *Collector) Spans() (spans []Span, dropped int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.spans), c.dropped
}
