package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// forwarderMetrics counts what goes from EVENTS to the sinks.
type forwarderMetrics struct {
	lanes     metric.Int64UpDownCounter
	takeovers metric.Int64Counter
	resets    metric.Int64Counter
	corrupt   metric.Int64Counter
	skipped   metric.Int64Counter
	again     metric.Int64Counter

	sends       metric.Int64Counter
	duration    metric.Float64Histogram
	sendEvents  metric.Int64Histogram
	sendBytes   metric.Int64Histogram
	events      metric.Int64ObservableCounter
	inversions  metric.Int64Counter
	latency     metric.Float64Histogram
	receipts    metric.Int64Counter
	receiptFail metric.Int64Counter

	producer *producerMetrics
	consumer *consumerMetrics
}

// deliveredKeys is how many (source, type) pairs have counts of their own, for each sink and
// outcome. The rest counts under OtherKey.
const deliveredKeys = 200

func newForwarderMetrics(m metric.Meter) (*forwarderMetrics, error) {
	var f forwarderMetrics
	var errs [17]error
	f.lanes, errs[0] = m.Int64UpDownCounter("waybill.forwarder.lanes", metric.WithUnit("{lane}"), metric.WithDescription("Lanes that this process holds, by sink"))
	f.takeovers, errs[1] = m.Int64Counter("waybill.forwarder.takeovers", metric.WithUnit("{lane}"), metric.WithDescription("Lanes taken, by sink"))
	f.resets, errs[2] = m.Int64Counter("waybill.forwarder.resets", metric.WithUnit("{reset}"), metric.WithDescription("Consumers reset to their floor, by sink and reason"))
	f.corrupt, errs[3] = m.Int64Counter("waybill.forwarder.corrupt", metric.WithUnit("{message}"), metric.WithDescription("Messages that could not be read; their batches come again from Postgres"))
	f.skipped, errs[4] = m.Int64Counter("waybill.forwarder.skipped", metric.WithUnit("{batch}"), metric.WithDescription("Batches not sent, by sink and reason: expired, meant for other sinks, or delivered before"))
	f.again, errs[5] = m.Int64Counter("waybill.forwarder.retransmits", metric.WithUnit("{batch}"), metric.WithDescription("Retransmitted batches sent, which may be out of order, by sink"))
	f.sends, errs[6] = m.Int64Counter("waybill.forwarder.sends", metric.WithUnit("{request}"), metric.WithDescription("Requests handed to a sink, by sink and status (ok, partial, failed, mismatched)"))
	f.duration, errs[7] = m.Float64Histogram("waybill.forwarder.send.duration", metric.WithUnit("s"), metric.WithDescription("Time of one try of a request, by sink and status"), secondsBuckets)
	f.sendEvents, errs[8] = m.Int64Histogram("waybill.forwarder.send.events", metric.WithUnit("{event}"), metric.WithDescription("Events per request, with the sink's limit"),
		metric.WithExplicitBucketBoundaries(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000))
	f.sendBytes, errs[9] = m.Int64Histogram("waybill.forwarder.send.size", metric.WithUnit("By"), metric.WithDescription("Bytes of events per request, with the sink's limit"),
		metric.WithExplicitBucketBoundaries(1<<10, 4<<10, 16<<10, 64<<10, 256<<10, 1<<20, 2<<20, 4<<20, 8<<20, 16<<20))
	f.events, errs[10] = m.Int64ObservableCounter("waybill.forwarder.events", metric.WithUnit("{event}"), metric.WithDescription("Events that a sink took or refused, by sink, outcome, source and type; the rest under other"))
	f.latency, errs[11] = m.Float64Histogram("waybill.forwarder.latency", metric.WithUnit("s"), metric.WithDescription("Time from a batch's acceptance, by Postgres's clock, to its delivery, by this process's, by sink: only as good as the clocks agree"), secondsBuckets)
	f.receipts, errs[12] = m.Int64Counter("waybill.forwarder.receipts", metric.WithUnit("{batch}"), metric.WithDescription("Batches whose receipt was stored, by sink"))
	f.receiptFail, errs[13] = m.Int64Counter("waybill.forwarder.receipt.failures", metric.WithUnit("{attempt}"), metric.WithDescription("Attempts to store a receipt that failed or whose outcome is unknown, by sink"))
	f.inversions, errs[14] = m.Int64Counter("waybill.forwarder.order.inversions", metric.WithUnit("{event}"), metric.WithDescription("Events delivered after one of the same source and type with a higher seqnum, by sink, as far as a process remembers"))
	f.producer, errs[15] = newProducerMetrics(m)
	f.consumer, errs[16] = newConsumerMetrics(m)
	return &f, metricsError(errs[:])
}

// sinkMetrics records for one sink; its attributes are made once.
type sinkMetrics struct {
	*forwarderMetrics
	name      string
	sink      metric.MeasurementOption
	maxEvents metric.MeasurementOption
	maxBytes  metric.MeasurementOption
	delivered *KeyCounts
	refused   *KeyCounts
	queue     *consumption
}

func (f *forwarderMetrics) of(s Sink) *sinkMetrics {
	sink := attribute.String("sink", s.Name())
	with := func(more ...attribute.KeyValue) metric.MeasurementOption {
		return metric.WithAttributeSet(attribute.NewSet(append(more, sink)...))
	}
	return &sinkMetrics{
		forwarderMetrics: f, name: s.Name(), sink: with(),
		maxEvents: with(attribute.Int("limit", s.Limits().Events)),
		maxBytes:  with(attribute.Int("limit", s.Limits().Bytes)),
		delivered: NewKeyCounts(deliveredKeys, sink, attribute.String("outcome", "delivered")),
		refused:   NewKeyCounts(deliveredKeys, sink, attribute.String("outcome", "refused")),
		queue:     f.consumer.of(EventsStream, s.Name()),
	}
}

// observe exports what the forwarder has counted by itself, and what is wrong.
func (f *forwarderMetrics) observe(m metric.Meter, forwarder *Forwarder) error {
	down, downErr := m.Int64ObservableGauge("waybill.sink.down", metric.WithUnit("{sink}"), metric.WithDescription("1 while a sink is sent nothing but probes, because its requests end in errors; else 0; by sink"))
	stuck, stuckErr := m.Int64ObservableGauge("waybill.forwarder.lanes.stuck", metric.WithUnit("{lane}"), metric.WithDescription("Lanes held by this process in which nothing was delivered for more than 30 s because something is wrong, by sink"))
	vacant, vacantErr := m.Int64ObservableGauge("waybill.forwarder.lanes.vacant", metric.WithUnit("{lane}"), metric.WithDescription("Lanes that no forwarder has held for longer than two lease times, by sink"))
	if err := errors.Join(downErr, stuckErr, vacantErr); err != nil {
		return metricsError([]error{err})
	}
	_, err := m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		stuckLanes, vacantLanes := forwarder.stuckLanes(), forwarder.vacant.bySink()
		for _, out := range forwarder.outlets {
			out.metrics.delivered.Observe(o, f.events)
			out.metrics.refused.Observe(o, f.events)
			isDown := int64(0)
			if out.breaker.state().err != nil {
				isDown = 1
			}
			o.ObserveInt64(down, isDown, out.metrics.sink)
			o.ObserveInt64(stuck, stuckLanes[out.sink.Name()], out.metrics.sink)
			o.ObserveInt64(vacant, vacantLanes[out.sink.Name()], out.metrics.sink)
		}
		return nil
	}, f.events, down, stuck, vacant)
	if err != nil {
		return fmt.Errorf("observe the forwarder: %w", err)
	}
	return nil
}

func (s *sinkMetrics) with(key, value string) metric.MeasurementOption {
	return metric.WithAttributes(attribute.String("sink", s.name), attribute.String(key, value))
}

func (s *sinkMetrics) taken() {
	s.lanes.Add(context.Background(), 1, s.sink)
	s.takeovers.Add(context.Background(), 1, s.sink)
}

func (s *sinkMetrics) givenUp() { s.lanes.Add(context.Background(), -1, s.sink) }

func (s *sinkMetrics) reset(reason string) {
	s.resets.Add(context.Background(), 1, s.with("reason", reason))
}

func (s *sinkMetrics) skip(reason string) {
	s.skipped.Add(context.Background(), 1, s.with("reason", reason))
}

func (s *sinkMetrics) sent(status string, took time.Duration, events, bytes int) {
	ctx := context.Background()
	by := s.with("status", status)
	s.sends.Add(ctx, 1, by)
	s.duration.Record(ctx, took.Seconds(), by)
	s.sendEvents.Record(ctx, int64(events), s.maxEvents)
	s.sendBytes.Record(ctx, int64(bytes), s.maxBytes)
}

// resolved takes note of a batch that a sink is done with.
func (s *sinkMetrics) resolved(b *Batch, refused []Refusal, order *orderWatch) {
	ctx := context.Background()
	s.count(b, refused, order)
	if b.Attempt > 0 {
		s.again.Add(ctx, 1, s.sink)
	}
	s.latency.Record(ctx, max(0, time.Since(b.AcceptedAt).Seconds()), s.sink)
}

func (s *sinkMetrics) inverted(events int64) {
	if events > 0 {
		s.inversions.Add(context.Background(), events, s.sink)
	}
}
