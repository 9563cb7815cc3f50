package intake

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/waybillhq/waybill/pipeline"
)

// Fronts, as the metrics name them.
const (
	frontHTTP   = "http"
	frontGRPC   = "grpc"
	frontStream = "grpc_stream"
)

// What becomes of a request that is submitted, and why its events are refused.
const (
	outcomeAccepted   = "accepted"
	reasonOverloaded  = "overloaded"
	reasonUnavailable = "unavailable"
	reasonUnknown     = "outcome-unknown"
)

// Reasons of refused events and requests beside those of a refusal.
const (
	reasonInvalid  = "invalid"
	reasonTooLarge = "too-large"
	reasonAborted  = "aborted" // valid events beside an invalid one that fails all
)

// metrics counts what became of events and requests.
type metrics struct {
	refused         metric.Int64Counter
	refusedRequests metric.Int64Counter
	duration        metric.Float64Histogram
	durations       map[durationKey]metric.MeasurementOption

	accepted *pipeline.KeyCounts
	serving  *servingMetrics
}

// durationKey is what the time of a request is recorded by.
type durationKey struct{ front, outcome string }

func newMetrics(meter metric.Meter, maxKeys int, budget *Budget) (*metrics, error) {
	m := &metrics{
		accepted:  pipeline.NewKeyCounts(maxKeys),
		durations: make(map[durationKey]metric.MeasurementOption),
	}
	for _, front := range []string{frontHTTP, frontGRPC, frontStream} {
		for _, outcome := range []string{outcomeAccepted, reasonInvalid, reasonOverloaded, reasonUnavailable, reasonUnknown} {
			m.durations[durationKey{front, outcome}] = metric.WithAttributeSet(attribute.NewSet(
				attribute.String("front", front), attribute.String("outcome", outcome)))
		}
	}
	var errs [6]error
	accepted, err := meter.Int64ObservableCounter("waybill.ingest.events.accepted",
		metric.WithUnit("{event}"), metric.WithDescription("Events made durable, by source and type; the rest under other."))
	errs[0] = err
	m.refused, errs[1] = meter.Int64Counter("waybill.ingest.events.refused",
		metric.WithUnit("{event}"), metric.WithDescription("Events not accepted, by reason, source and type; the rest under other."))
	m.refusedRequests, errs[2] = meter.Int64Counter("waybill.ingest.requests.refused",
		metric.WithUnit("{request}"), metric.WithDescription("Requests refused before their events were read, by reason."))
	m.duration, errs[3] = meter.Float64Histogram("waybill.ingest.accept.duration",
		metric.WithUnit("s"), metric.WithDescription("From the start of a request to the end of its transaction, for requests that were submitted, by front and outcome."),
		metric.WithExplicitBucketBoundaries(.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10))
	used, err := meter.Int64ObservableGauge("waybill.ingest.budget.used",
		metric.WithUnit("By"), metric.WithDescription("Bytes that requests in progress hold."))
	errs[4] = err
	m.serving, errs[5] = newServingMetrics(meter)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("make the intake's instruments: %w", err)
	}
	limit, err := meter.Int64ObservableGauge("waybill.ingest.budget.limit",
		metric.WithUnit("By"), metric.WithDescription("Bytes that requests in progress may hold."))
	if err != nil {
		return nil, fmt.Errorf("make the intake's instruments: %w", err)
	}
	_, err = meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		o.ObserveInt64(used, budget.Used())
		o.ObserveInt64(limit, budget.Size())
		m.accepted.Observe(o, accepted)
		return nil
	}, used, limit, accepted)
	if err != nil {
		return nil, fmt.Errorf("observe the intake: %w", err)
	}
	return m, nil
}

// answered records the outcome of a unit whose valid items were submitted.
func (m *metrics) answered(front string, started time.Time, items []item, err error) {
	faults, _ := countFaults(items)
	outcome := outcomeAccepted
	switch {
	case err != nil:
		outcome = reasonOf(err)
	case faults == len(items) && faults > 0:
		outcome = reasonInvalid
	}
	m.duration.Record(context.Background(), time.Since(started).Seconds(), m.durations[durationKey{front, outcome}])
	m.countFaulty(items)
	if err != nil {
		m.countValid(items, outcome)
		return
	}
	m.countAccepted(items)
}

// countAccepted counts the valid items, each under its key.
func (m *metrics) countAccepted(items []item) {
	m.accepted.Add(keysOf(items))
}

// keysOf are source and type of the valid items.
func keysOf(items []item) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for i := range items {
			if items[i].fault == nil && !yield(items[i].event.Source, items[i].event.Type) {
				return
			}
		}
	}
}

// refusedAll records a request whose faults kept all its events out.
func (m *metrics) refusedAll(items []item) {
	m.countFaulty(items)
	m.countValid(items, reasonAborted)
}

// refusedUnread records a request that was refused before its events were read.
func (m *metrics) refusedUnread(front, reason string) {
	m.refusedRequests.Add(context.Background(), 1,
		metric.WithAttributes(attribute.String("front", front), attribute.String("reason", reason)))
}

// countFaulty counts the items with a fault. What such an event says of its source is not
// to be trusted with a label.
func (m *metrics) countFaulty(items []item) {
	faults, tooLarge := countFaults(items)
	m.addRefused(m.accepted.Other(), reasonInvalid, int64(faults-tooLarge))
	m.addRefused(m.accepted.Other(), reasonTooLarge, int64(tooLarge))
}

// countValid counts the valid items. Only an accepted event gives its key a place.
func (m *metrics) countValid(items []item, reason string) {
	type key struct{ source, typ string }
	counts := make(map[key]int64, 1)
	for source, typ := range keysOf(items) {
		counts[key{source, typ}]++
	}
	for k, n := range counts {
		m.addRefused(m.accepted.Option(k.source, k.typ), reason, n)
	}
}

func (m *metrics) addRefused(of metric.MeasurementOption, reason string, n int64) {
	if n > 0 {
		m.refused.Add(context.Background(), n, of, metric.WithAttributes(attribute.String("reason", reason)))
	}
}

func reasonOf(err error) string {
	switch {
	case errors.Is(err, pipeline.ErrOverloaded):
		return reasonOverloaded
	case errors.Is(err, pipeline.ErrUnavailable):
		return reasonUnavailable
	default:
		return reasonUnknown
	}
}
