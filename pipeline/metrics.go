package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// secondsBuckets suit everything from a local commit to an outage.
var secondsBuckets = metric.WithExplicitBucketBoundaries(
	.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 60, 600, 3600, 86400)

// publisherMetrics counts what goes into EVENTS.
type publisherMetrics struct {
	*producerMetrics
	events   metric.Int64Counter
	leftOver metric.Int64Counter
}

func newPublisherMetrics(m metric.Meter) (*publisherMetrics, error) {
	var p publisherMetrics
	var errs [3]error
	p.producerMetrics, errs[0] = newProducerMetrics(m)
	p.events, errs[1] = m.Int64Counter("waybill.publish.events", metric.WithUnit("{event}"), metric.WithDescription("Events stored in EVENTS"))
	p.leftOver, errs[2] = m.Int64Counter("waybill.publish.left", metric.WithUnit("{event}"), metric.WithDescription("Committed events left to the janitor's retransmission, by reason"))
	return &p, metricsError(errs[:])
}

func (p *publisherMetrics) published(events int, took time.Duration, err error) {
	p.producerMetrics.published(EventsStream, took, err)
	if err == nil {
		p.events.Add(context.Background(), int64(events))
	}
}

func (p *publisherMetrics) left(events int, reason string) {
	p.leftOver.Add(context.Background(), int64(events), metric.WithAttributes(attribute.String("reason", reason)))
}

// ingesterMetrics counts flushes.
type ingesterMetrics struct {
	flushEvents metric.Int64Histogram
	duration    metric.Float64Histogram
	failures    metric.Int64Counter
	duplicates  metric.Int64Counter
}

func newIngesterMetrics(m metric.Meter) (*ingesterMetrics, error) {
	var i ingesterMetrics
	var errs [4]error
	i.flushEvents, errs[0] = m.Int64Histogram("waybill.flush.events", metric.WithUnit("{event}"), metric.WithDescription("Events committed by one flush"),
		metric.WithExplicitBucketBoundaries(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000))
	i.duration, errs[1] = m.Float64Histogram("waybill.flush.duration", metric.WithUnit("s"), metric.WithDescription("Time of one flush's transaction"), secondsBuckets)
	i.failures, errs[2] = m.Int64Counter("waybill.flush.failures", metric.WithUnit("{flush}"), metric.WithDescription("Flushes that were not known to commit, by reason"))
	i.duplicates, errs[3] = m.Int64Counter("waybill.ingest.duplicates", metric.WithUnit("{event}"), metric.WithDescription("Events answered as accepted because they had been, and not stored again, by where they were found: local, log"))
	return &i, metricsError(errs[:])
}

// observeFill exports how full the ingester's bounded buffers are.
func observeFill(m metric.Meter, in *Ingester) error {
	var errs [5]error
	var events, queued, bytes, backlogEvents, backlogBytes metric.Int64ObservableGauge
	events, errs[0] = m.Int64ObservableGauge("waybill.queue.events", metric.WithUnit("{event}"), metric.WithDescription("Events that wait for a transaction; the limit is an attribute"))
	bytes, errs[1] = m.Int64ObservableGauge("waybill.publish.queue", metric.WithUnit("By"), metric.WithDescription("Committed bytes that wait to be published; the limit is an attribute"))
	backlogEvents, errs[2] = m.Int64ObservableGauge("waybill.backlog.events", metric.WithUnit("{event}"), metric.WithDescription("Events that wait in Postgres for any sink, as far as this process knows; the limit is an attribute"))
	backlogBytes, errs[3] = m.Int64ObservableGauge("waybill.backlog.bytes", metric.WithUnit("By"), metric.WithDescription("Bytes of the events that wait in Postgres for any sink; the limit is an attribute"))
	queued, errs[4] = m.Int64ObservableGauge("waybill.queue.bytes", metric.WithUnit("By"), metric.WithDescription("Bytes of the events that wait for a transaction; the limit is an attribute"))
	if err := metricsError(errs[:]); err != nil {
		return err
	}
	_, err := m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		waiting, size := in.queueFill()
		o.ObserveInt64(events, int64(waiting), metric.WithAttributes(attribute.Int("limit", in.cfg.QueueEvents)))
		o.ObserveInt64(queued, int64(size), metric.WithAttributes(attribute.Int("limit", in.cfg.QueueBytes)))
		held, most := in.publisher.queueFill()
		o.ObserveInt64(bytes, held, metric.WithAttributes(attribute.Int64("limit", most)))
		e, b := in.backlog.fill()
		o.ObserveInt64(backlogEvents, e, metric.WithAttributes(attribute.Int64("limit", in.cfg.BacklogEvents)))
		o.ObserveInt64(backlogBytes, b, metric.WithAttributes(attribute.Int64("limit", in.cfg.BacklogBytes)))
		return nil
	}, events, queued, bytes, backlogEvents, backlogBytes)
	if err != nil {
		return fmt.Errorf("observe the queues: %w", err)
	}
	return nil
}

// observeDedupe exports what is remembered of accepted events. d may be nil.
func observeDedupe(m metric.Meter, d *deduper) error {
	if d == nil {
		return nil
	}
	var errs [2]error
	var size metric.Int64ObservableGauge
	var window metric.Float64ObservableGauge
	size, errs[0] = m.Int64ObservableGauge("waybill.dedupe.events", metric.WithUnit("{event}"), metric.WithDescription("Accepted events that are remembered"))
	window, errs[1] = m.Float64ObservableGauge("waybill.dedupe.window", metric.WithUnit("s"), metric.WithDescription("How far back accepted events are remembered: the pipeline's window, or less where memory is short"))
	if err := metricsError(errs[:]); err != nil {
		return err
	}
	_, err := m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		events, covers := d.state()
		o.ObserveInt64(size, events)
		o.ObserveFloat64(window, covers.Seconds())
		return nil
	}, size, window)
	if err != nil {
		return fmt.Errorf("observe what is remembered: %w", err)
	}
	return nil
}

func (i *ingesterMetrics) duplicated(d duplicates) {
	for from, n := range map[string]int{"local": d.local, "log": d.log} {
		if n > 0 {
			i.duplicates.Add(context.Background(), int64(n), metric.WithAttributes(attribute.String("found", from)))
		}
	}
}

func (i *ingesterMetrics) flushed(events int, took time.Duration, err error) {
	ctx := context.Background()
	i.duration.Record(ctx, took.Seconds())
	if err == nil {
		if events > 0 {
			i.flushEvents.Record(ctx, int64(events))
		}
		return
	}
	i.failures.Add(ctx, 1, metric.WithAttributes(attribute.String("reason", reasonOf(err))))
}

// reasonOf names the error of an Append in a metric.
func reasonOf(err error) string {
	var data *dataError
	switch {
	case errors.Is(err, ErrOutcomeUnknown):
		return "unknown"
	case errors.As(err, &data):
		return "data"
	case errors.Is(err, errTakenElsewhere):
		return "taken"
	default:
		return "unavailable"
	}
}

func metricsError(errs []error) error {
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("create instruments: %w", err)
	}
	return nil
}
