package sinks

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
)

// archiveMetrics are the instruments of one archive sink. Those of requests are shared
// with the other sinks.
type archiveMetrics struct {
	name attribute.KeyValue
	sink metric.MeasurementOption
	// The limits that the sizes of requests are to be read against.
	maxEvents, maxBytes metric.MeasurementOption

	requests metric.Int64Counter
	duration metric.Float64Histogram
	events   metric.Int64Histogram
	bytes    metric.Int64Histogram
	objects  metric.Int64Histogram
	skipped  metric.Int64Counter
	taken    metric.Int64Counter
}

func newArchiveMetrics(cfg ArchiveConfig) (*archiveMetrics, error) {
	meter := cfg.Meter
	if meter == nil {
		meter = noop.NewMeterProvider().Meter("")
	}
	name := attribute.String("sink", cfg.Name)
	m := &archiveMetrics{
		name: name, sink: metric.WithAttributes(name),
		maxEvents: metric.WithAttributes(name, attribute.Int("limit", cfg.MaxObjectEvents)),
		maxBytes:  metric.WithAttributes(name, attribute.Int("limit", cfg.MaxObjectBytes)),
	}
	var errs [7]error
	m.requests, errs[0] = meter.Int64Counter("waybill.sink.requests",
		metric.WithUnit("{request}"), metric.WithDescription("Requests to a sink's destination, by status."))
	m.duration, errs[1] = meter.Float64Histogram("waybill.sink.request.duration",
		metric.WithUnit("s"), metric.WithDescription("Time from sending a request to its answer, by status."))
	m.events, errs[2] = meter.Int64Histogram("waybill.sink.request.events",
		metric.WithUnit("{event}"), metric.WithDescription("Events per request, with the configured limit."))
	m.bytes, errs[3] = meter.Int64Histogram("waybill.sink.request.size",
		metric.WithUnit("By"), metric.WithDescription("Encoded size of requests, with the configured limit."))
	m.objects, errs[4] = meter.Int64Histogram("waybill.archive.object.size",
		metric.WithUnit("By"), metric.WithDescription("Size of archive objects, compressed."))
	m.skipped, errs[5] = meter.Int64Counter("waybill.archive.duplicates",
		metric.WithUnit("{batch}"), metric.WithDescription("Batches that were archived already when they came in."))
	m.taken, errs[6] = meter.Int64Counter("waybill.archive.conflicts",
		metric.WithUnit("{conflict}"), metric.WithDescription("Appends that found somebody else's object at the end of the lane."))
	return m, errors.Join(errs[:]...)
}

// put records the PUT of an object: how many events it holds, how many bytes of encoded
// events came in for it and how large it is itself.
func (m *archiveMetrics) put(ctx context.Context, err error, took time.Duration, events, encoded, object int) {
	status := "OK"
	switch {
	case errors.Is(err, errObjectExists):
		status = "EXISTS"
	case err != nil:
		status = "ERROR"
	}
	attributes := metric.WithAttributes(m.name, attribute.String("status", status))
	m.requests.Add(ctx, 1, attributes)
	m.duration.Record(ctx, took.Seconds(), attributes)
	m.events.Record(ctx, int64(events), m.maxEvents)
	m.bytes.Record(ctx, int64(encoded), m.maxBytes)
	m.objects.Record(ctx, int64(object), m.sink)
}

func (m *archiveMetrics) duplicates(ctx context.Context, batches int) {
	if batches > 0 {
		m.skipped.Add(ctx, int64(batches), m.sink)
	}
}

func (m *archiveMetrics) conflict(ctx context.Context) { m.taken.Add(ctx, 1, m.sink) }
