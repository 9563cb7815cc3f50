package collector

import (
	"context"
	"maps"

	metricscollectorpb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	metricspb "go.opentelemetry.io/proto/otlp/metrics/v1"
)

// metricsService receives metrics.
type metricsService struct {
	metricscollectorpb.UnimplementedMetricsServiceServer
	collector *Collector
}

var _ metricscollectorpb.MetricsServiceServer = (*metricsService)(nil)

// MetricsEnv are the variables that let a process send its metrics here, twice a second.
func (c *Collector) MetricsEnv() []string {
	return []string{
		"OTEL_METRICS_EXPORTER=otlp", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=http://" + c.addr,
		"OTEL_EXPORTER_OTLP_METRICS_PROTOCOL=grpc", "OTEL_METRIC_EXPORT_INTERVAL=500",
	}
}

// Metrics returns the newest word on each metric of a service, by name.
func (c *Collector) Metrics(service string) map[string]*metricspb.Metric {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.metrics[service])
}

// Export implements metricscollectorpb.MetricsServiceServer.
func (s *metricsService) Export(_ context.Context, request *metricscollectorpb.ExportMetricsServiceRequest) (*metricscollectorpb.ExportMetricsServiceResponse, error) {
	c := s.collector
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, resource := range request.GetResourceMetrics() {
		service := attributesOf(resource.GetResource().GetAttributes())["service.name"]
		if c.metrics[service] == nil {
			c.metrics[service] = map[string]*metricspb.Metric{}
		}
		for _, scope := range resource.GetScopeMetrics() {
			for _, m := range scope.GetMetrics() {
				c.metrics[service][m.GetName()] = m
			}
		}
	}
	return &metricscollectorpb.ExportMetricsServiceResponse{}, nil
}
