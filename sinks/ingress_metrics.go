package sinks

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	"google.golang.org/grpc/codes"
)

// ingressMetrics are the instruments of one ingress sink.
type ingressMetrics struct {
	sink attribute.KeyValue
	// The limits that the sizes of requests are to be read against.
	maxEvents, maxBytes metric.MeasurementOption

	requests   metric.Int64Counter
	duration   metric.Float64Histogram
	events     metric.Int64Histogram
	bytes      metric.Int64Histogram
	splits     metric.Int64Counter
	mismatched metric.Int64Counter
}

func newIngressMetrics(cfg IngressConfig) (*ingressMetrics, error) {
	meter := cfg.Meter
	if meter == nil {
		meter = noop.NewMeterProvider().Meter("")
	}
	sink := attribute.String("sink", cfg.Name)
	m := &ingressMetrics{
		sink:      sink,
		maxEvents: metric.WithAttributes(sink, attribute.Int("limit", cfg.MaxRequestEvents)),
		maxBytes:  metric.WithAttributes(sink, attribute.Int("limit", cfg.MaxRequestBytes)),
	}
	var errs [6]error
	m.requests, errs[0] = meter.Int64Counter("waybill.sink.requests",
		metric.WithUnit("{request}"), metric.WithDescription("Requests to a sink's destination, by status."))
	m.duration, errs[1] = meter.Float64Histogram("waybill.sink.request.duration",
		metric.WithUnit("s"), metric.WithDescription("Time from sending a request to its answer, by status."))
	m.events, errs[2] = meter.Int64Histogram("waybill.sink.request.events",
		metric.WithUnit("{event}"), metric.WithDescription("Events per request, with the configured limit."))
	m.bytes, errs[3] = meter.Int64Histogram("waybill.sink.request.size",
		metric.WithUnit("By"), metric.WithDescription("Encoded size of requests, with the configured limit."))
	m.splits, errs[4] = meter.Int64Counter("waybill.sink.splits",
		metric.WithUnit("{split}"), metric.WithDescription("Requests cut in two because of the answer they got, by reason."))
	m.mismatched, errs[5] = meter.Int64Counter("waybill.sink.results.mismatched",
		metric.WithUnit("{result}"), metric.WithDescription("Results that were missing, surplus or of another event."))
	return m, errors.Join(errs[:]...)
}

func (m *ingressMetrics) request(ctx context.Context, code codes.Code, took time.Duration, events, bytes int) {
	status := metric.WithAttributes(m.sink, attribute.String("status", code.String()))
	m.requests.Add(ctx, 1, status)
	m.duration.Record(ctx, took.Seconds(), status)
	m.events.Record(ctx, int64(events), m.maxEvents)
	m.bytes.Record(ctx, int64(bytes), m.maxBytes)
}

func (m *ingressMetrics) split(ctx context.Context, reason string) {
	m.splits.Add(ctx, 1, metric.WithAttributes(m.sink, attribute.String("reason", reason)))
}

func (m *ingressMetrics) mismatch(ctx context.Context, results int) {
	m.mismatched.Add(ctx, int64(results), metric.WithAttributes(m.sink))
}
