package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// takerMetrics counts what a taker takes.
type takerMetrics struct {
	taken    metric.Int64Counter
	failed   metric.Int64Counter
	duration metric.Float64Histogram
}

func newTakerMetrics(m metric.Meter, t *taker) (*takerMetrics, error) {
	var out takerMetrics
	var errs [5]error
	var shards, rows metric.Int64ObservableGauge
	out.taken, errs[0] = m.Int64Counter("waybill.outbox.taken", metric.WithUnit("{event}"), metric.WithDescription("Events taken out of the outbox and committed as events, or known to be accepted before"))
	out.failed, errs[1] = m.Int64Counter("waybill.outbox.failures", metric.WithUnit("{transaction}"), metric.WithDescription("Transactions that were to take rows out of the outbox and are not known to be committed, by reason; the rows are read again"))
	out.duration, errs[2] = m.Float64Histogram("waybill.outbox.duration", metric.WithUnit("s"), metric.WithDescription("Time from the statement that emitted an event to the commit that took it out of the outbox; the caller's transaction counts"), secondsBuckets)
	shards, errs[3] = m.Int64ObservableGauge("waybill.outbox.shards", metric.WithUnit("{shard}"), metric.WithDescription("Shards of the outbox that this process takes from"))
	rows, errs[4] = m.Int64ObservableGauge("waybill.outbox.rows_in_hand", metric.WithUnit("{row}"), metric.WithDescription("Rows of the outbox that this process is about to commit as events"))
	if err := metricsError(errs[:]); err != nil {
		return nil, err
	}
	out.taken.Add(context.Background(), 0) // what never counted is 0 and not unknown
	_, err := m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		held, inHand := t.state()
		o.ObserveInt64(shards, int64(held))
		o.ObserveInt64(rows, int64(inHand))
		return nil
	}, shards, rows)
	if err != nil {
		return nil, fmt.Errorf("observe the outbox's taker: %w", err)
	}
	return &out, nil
}

// answered notes what became of a unit.
func (m *takerMetrics) answered(u *takenUnit, err error) {
	ctx := context.Background()
	if err != nil {
		reason := reasonOf(err)
		if errors.Is(err, ErrOverloaded) {
			reason = "overloaded"
		}
		m.failed.Add(ctx, 1, metric.WithAttributes(attribute.String("reason", reason)))
		return
	}
	m.taken.Add(ctx, int64(len(u.keys)))
	since := time.Since(u.read)
	for _, age := range u.ages {
		m.duration.Record(ctx, (age + since).Seconds())
	}
}

// observeOutbox exports the newest survey of the outbox.
func observeOutbox(m metric.Meter, j *Janitor) error {
	var errs [3]error
	var waiting, refused metric.Int64ObservableGauge
	var age metric.Float64ObservableGauge
	waiting, errs[0] = m.Int64ObservableGauge("waybill.outbox.rows", metric.WithUnit("{row}"), metric.WithDescription("Rows of the outbox that wait to be taken; 100,000 stands for as many and more"))
	age, errs[1] = m.Float64ObservableGauge("waybill.outbox.oldest_age", metric.WithUnit("s"), metric.WithDescription("Age of the oldest row of the outbox that waits to be taken, by Postgres's clock; 0 when none does"))
	refused, errs[2] = m.Int64ObservableGauge("waybill.outbox.refused", metric.WithUnit("{row}"), metric.WithDescription("Rows of the outbox of which no event can be made, and that wait for somebody"))
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	_, err := m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		survey := j.outbox()
		o.ObserveInt64(waiting, survey.Waiting)
		o.ObserveFloat64(age, survey.Oldest.Seconds())
		o.ObserveInt64(refused, survey.Refused)
		return nil
	}, waiting, age, refused)
	return err
}
