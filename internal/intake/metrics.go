package intake

import (
	"context"
	"errors"
	"fmt"
	"sync"
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

// Reasons of refused events and requests beside those of a refusal.
const (
	reasonInvalid  = "invalid"
	reasonTooLarge = "too-large"
	reasonAborted  = "aborted" // valid events beside an invalid one that fails all
)

// key is the pair that accepted and refused events are counted by.
type key struct{ source, typ string }

var otherKey = key{source: "other", typ: "other"}

// metrics counts what became of events and requests.
type metrics struct {
	accepted        metric.Int64Counter
	refused         metric.Int64Counter
	refusedRequests metric.Int64Counter
	duration        metric.Float64Histogram

	maxKeys int
	mu      sync.RWMutex
	known   map[key]metric.MeasurementOption // guarded by mu; never more than maxKeys
	other   metric.MeasurementOption
}

func newMetrics(meter metric.Meter, maxKeys int, budget *Budget) (*metrics, error) {
	m := &metrics{
		maxKeys: maxKeys,
		known:   make(map[key]metric.MeasurementOption),
		other:   optionOf(otherKey),
	}
	var errs [5]error
	m.accepted, errs[0] = meter.Int64Counter("waybill.ingest.events.accepted",
		metric.WithUnit("{event}"), metric.WithDescription("Events made durable, by source and type; the rest under other."))
	m.refused, errs[1] = meter.Int64Counter("waybill.ingest.events.refused",
		metric.WithUnit("{event}"), metric.WithDescription("Events not accepted, by reason, source and type; the rest under other."))
	m.refusedRequests, errs[2] = meter.Int64Counter("waybill.ingest.requests.refused",
		metric.WithUnit("{request}"), metric.WithDescription("Requests refused before their events were read, by reason."))
	m.duration, errs[3] = meter.Float64Histogram("waybill.ingest.accept.duration",
		metric.WithUnit("s"), metric.WithDescription("From the start of a request to the answer, for requests that were submitted."),
		metric.WithExplicitBucketBoundaries(.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10))
	used, err := meter.Int64ObservableGauge("waybill.ingest.budget.used",
		metric.WithUnit("By"), metric.WithDescription("Bytes that requests in progress hold."))
	errs[4] = err
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
		return nil
	}, used, limit)
	if err != nil {
		return nil, fmt.Errorf("observe the intake's budget: %w", err)
	}
	return m, nil
}

func optionOf(k key) metric.MeasurementOption {
	return metric.WithAttributeSet(attribute.NewSet(
		attribute.String("source", k.source), attribute.String("type", k.typ)))
}

// answered records the outcome of a unit whose valid items were submitted.
func (m *metrics) answered(front string, started time.Time, items []item, err error) {
	faults, _ := countFaults(items)
	outcome := "accepted"
	switch {
	case err != nil:
		outcome = reasonOf(err)
	case faults == len(items) && faults > 0:
		outcome = reasonInvalid
	}
	m.duration.Record(context.Background(), time.Since(started).Seconds(),
		metric.WithAttributes(attribute.String("front", front), attribute.String("outcome", outcome)))
	m.countFaulty(items)
	if err != nil {
		m.countValid(items, outcome)
		return
	}
	for k, n := range tally(items) {
		m.accepted.Add(context.Background(), n, m.option(k, true))
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
	m.addRefused(otherKey, reasonInvalid, int64(faults-tooLarge))
	m.addRefused(otherKey, reasonTooLarge, int64(tooLarge))
}

func (m *metrics) countValid(items []item, reason string) {
	for k, n := range tally(items) {
		m.addRefused(k, reason, n)
	}
}

func (m *metrics) addRefused(k key, reason string, n int64) {
	if n > 0 {
		m.refused.Add(context.Background(), n, m.option(k, false),
			metric.WithAttributes(attribute.String("reason", reason)))
	}
}

// tally counts the valid items by key.
func tally(items []item) map[key]int64 {
	counts := make(map[key]int64, 1)
	for i := range items {
		if items[i].fault == nil {
			counts[key{items[i].event.Source, items[i].event.Type}]++
		}
	}
	return counts
}

// option returns the attributes of k. Only an accepted event gives its key a place.
func (m *metrics) option(k key, accepted bool) metric.MeasurementOption {
	m.mu.RLock()
	option, ok := m.known[k]
	full := len(m.known) >= m.maxKeys
	m.mu.RUnlock()
	switch {
	case ok:
		return option
	case full || !accepted:
		return m.other
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if option, ok = m.known[k]; ok {
		return option
	}
	if len(m.known) >= m.maxKeys {
		return m.other
	}
	option = optionOf(k)
	m.known[k] = option
	return option
}

func reasonOf(err error) string {
	switch {
	case errors.Is(err, pipeline.ErrOverloaded):
		return "overloaded"
	case errors.Is(err, pipeline.ErrUnavailable):
		return "unavailable"
	default:
		return "outcome-unknown"
	}
}
