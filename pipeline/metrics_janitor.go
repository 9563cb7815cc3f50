package pipeline

import (
	"context"
	"errors"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// maxLetterCodes is how many codes of refusals have counts of their own; the rest counts under
// OtherKey. Sinks have some twenty.
const maxLetterCodes = 64

// janitorMetrics counts what the janitor does and shows what waits.
type janitorMetrics struct {
	receipts     metric.Int64Counter
	batches      metric.Int64Counter
	events       metric.Int64Counter
	deadLetters  metric.Int64Counter
	late         metric.Int64Counter
	bad          metric.Int64Counter
	retransmits  metric.Int64Counter
	damagedCount metric.Int64Counter
	tooLarge     metric.Int64Counter
	shedCount    metric.Int64Counter
	producer     *producerMetrics
	queue        *consumption

	mu    sync.Mutex          // guards codes
	codes map[string]struct{} // that have counts
}

func newJanitorMetrics(m metric.Meter, j *Janitor) (*janitorMetrics, error) {
	out := janitorMetrics{codes: map[string]struct{}{}}
	var errs []error
	counter := func(name, unit, description string) metric.Int64Counter {
		c, err := m.Int64Counter(name, metric.WithUnit(unit), metric.WithDescription(description))
		errs = append(errs, err)
		if err == nil {
			c.Add(context.Background(), 0) // what never counted is 0 and not unknown
		}
		return c
	}
	out.receipts = counter("waybill.settle.receipts", "{receipt}", "Receipts applied")
	out.batches = counter("waybill.settle.batches", "{batch}", "Batches that every sink has, deleted")
	out.events = counter("waybill.settle.events", "{event}", "Events that every sink has, deleted")
	var err error
	out.deadLetters, err = m.Int64Counter("waybill.dead_letters", metric.WithUnit("{event}"), metric.WithDescription("Events moved to dead_letters, by sink and code; of those past their TTL the code is expired"))
	errs = append(errs, err)
	out.late = counter("waybill.delivered_late", "{event}", "Expired events whose receipt came after all")
	out.bad = counter("waybill.receipts.malformed", "{receipt}", "Receipts dropped as malformed")
	out.retransmits = counter("waybill.retransmit.events", "{event}", "Events published again because they were no longer queued")
	out.damagedCount = counter("waybill.batches.damaged", "{batch}", "Batches with events that were damaged in Postgres and became dead letters")
	out.tooLarge = counter("waybill.batches.too_large", "{batch}", "Retransmits that failed because the batch is larger than the NATS server's max_payload")
	out.shedCount = counter("waybill.shed.batches", "{batch}", "Batches taken out of a queue that was nearly full")
	producer, err := newProducerMetrics(m)
	errs = append(errs, err)
	consumer, err := newConsumerMetrics(m)
	errs = append(errs, err, observeBacklog(m, j), observeStreams(m, j), observeTables(m, j), observeOutbox(m, j))
	out.producer, out.queue = producer, consumer.of(ReceiptsStream, receiptsConsumer)
	return &out, metricsError(errs)
}

// observeBacklog exports the newest survey by sink, without asking Postgres.
func observeBacklog(m metric.Meter, j *Janitor) error {
	var errs [6]error
	var events, bytes, near, lanes metric.Int64ObservableGauge
	var age, budget metric.Float64ObservableGauge
	events, errs[0] = m.Int64ObservableGauge("waybill.pending.events", metric.WithUnit("{event}"), metric.WithDescription("Events that wait for a sink"))
	bytes, errs[1] = m.Int64ObservableGauge("waybill.pending.bytes", metric.WithUnit("By"), metric.WithDescription("Bytes of the events that wait for a sink"))
	age, errs[2] = m.Float64ObservableGauge("waybill.pending.oldest_age", metric.WithUnit("s"), metric.WithDescription("Age of the oldest event that waits for a sink, by Postgres's clock; 0 when none does"))
	budget, errs[3] = m.Float64ObservableGauge("waybill.pending.ttl_budget", metric.WithUnit("s"), metric.WithDescription("Time until the first of the events that wait for a sink becomes a dead letter; there is none where none waits or expires"))
	near, errs[4] = m.Int64ObservableGauge("waybill.pending.near_ttl", metric.WithUnit("{event}"), metric.WithDescription("Events that wait for a sink and have less than a fifth of their time to live left"))
	lanes, errs[5] = m.Int64ObservableGauge("waybill.lane.backlog", metric.WithUnit("{batch}"), metric.WithDescription("Batches of a lane that wait for a sink"))
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	_, err := m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		survey, sinks := j.seen()
		pending := survey.BySink()
		for _, sink := range sinks {
			if _, waits := pending[sink]; !waits {
				pending[sink] = Backlog{Sink: sink, OldestAccepted: survey.Now}
			}
		}
		for sink, b := range pending {
			at := metric.WithAttributes(attribute.String("sink", sink))
			o.ObserveInt64(events, b.Events, at)
			o.ObserveInt64(bytes, b.Bytes, at)
			o.ObserveFloat64(age, survey.Now.Sub(b.OldestAccepted).Seconds(), at)
			o.ObserveInt64(near, b.NearTTL, at)
			if !b.OldestExpires.IsZero() {
				o.ObserveFloat64(budget, max(0, b.OldestExpires.Sub(survey.Now).Seconds()), at)
			}
		}
		for place, batches := range backlogOfLanes(survey, sinks, j.lanes()) {
			o.ObserveInt64(lanes, batches, metric.WithAttributes(attribute.String("sink", place.Sink), attribute.Int("lane", place.Lane)))
		}
		return nil
	}, events, bytes, age, budget, near, lanes)
	return err
}

// backlogOfLanes is how many batches wait in each lane, those with none included.
func backlogOfLanes(survey Survey, sinks []string, lanes int) map[SinkLane]int64 {
	out := make(map[SinkLane]int64, len(sinks)*lanes)
	if !survey.Now.IsZero() {
		for _, sink := range sinks {
			for lane := range lanes {
				out[SinkLane{sink, lane}] = 0
			}
		}
	}
	for _, b := range survey.Backlogs {
		out[SinkLane{b.Sink, b.Lane}] = b.Batches
	}
	return out
}

// observeStreams exports how full the streams are, as upkeep saw them last.
func observeStreams(m metric.Meter, j *Janitor) error {
	size, sizeErr := m.Int64ObservableGauge("waybill.stream.size", metric.WithUnit("By"), metric.WithDescription("Bytes that a stream takes on disk, those kept for replay included; the limit is an attribute"))
	messages, messagesErr := m.Int64ObservableGauge("waybill.stream.messages", metric.WithUnit("{message}"), metric.WithDescription("Messages in a stream: batches in EVENTS, those kept for replay included, and in RECEIPTS what is not settled"))
	if err := errors.Join(sizeErr, messagesErr); err != nil {
		return err
	}
	_, err := m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		for name, s := range j.streamFills() {
			o.ObserveInt64(size, s.bytes, metric.WithAttributes(attribute.String("stream", name), attribute.Int64("limit", s.limit)))
			o.ObserveInt64(messages, s.messages, metric.WithAttributes(attribute.String("stream", name)))
		}
		return nil
	}, size, messages)
	return err
}

func (m *janitorMetrics) settled(done Settled, receipts int, err error) {
	if err != nil {
		return
	}
	ctx := context.Background()
	m.receipts.Add(ctx, int64(receipts))
	m.batches.Add(ctx, int64(done.Batches))
	m.events.Add(ctx, int64(done.Events))
	m.late.Add(ctx, int64(done.Late))
	m.died(done.DeadLetters)
}

// died counts events that became dead letters.
func (m *janitorMetrics) died(letters map[SinkCode]int) {
	for l, n := range letters {
		m.deadLetters.Add(context.Background(), int64(n), metric.WithAttributes(
			attribute.String("sink", l.Sink), attribute.String("code", m.boundedCode(l.Code))))
	}
}

// boundedCode is the code, or OtherKey where there are too many of them: a destination makes them up.
func (m *janitorMetrics) boundedCode(code string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, known := m.codes[code]; known {
		return code
	}
	if len(m.codes) >= maxLetterCodes {
		return OtherKey
	}
	m.codes[code] = struct{}{}
	return code
}

// published takes note of one attempt to publish a batch again.
func (m *janitorMetrics) published(took time.Duration, err error) {
	m.producer.published(EventsStream, took, err)
}

func (m *janitorMetrics) malformed()          { m.bad.Add(context.Background(), 1) }
func (m *janitorMetrics) damaged()            { m.damagedCount.Add(context.Background(), 1) }
func (m *janitorMetrics) unpublishable()      { m.tooLarge.Add(context.Background(), 1) }
func (m *janitorMetrics) retransmitted(n int) { m.retransmits.Add(context.Background(), int64(n)) }
func (m *janitorMetrics) shedBatches(n int64) { m.shedCount.Add(context.Background(), n) }
