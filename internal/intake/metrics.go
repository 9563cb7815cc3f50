package intake

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
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

// key is the pair that accepted and refused events are counted by.
type key struct{ source, typ string }

var otherKey = key{source: "other", typ: "other"}

// keyCount is how many events of a key were accepted. An instrument's own Add takes several times
// as long, for each key of each request.
type keyCount struct {
	option   metric.MeasurementOption
	accepted atomic.Int64
}

// metrics counts what became of events and requests.
type metrics struct {
	refused         metric.Int64Counter
	refusedRequests metric.Int64Counter
	duration        metric.Float64Histogram
	durations       map[durationKey]metric.MeasurementOption

	maxKeys int
	mu      sync.RWMutex
	known   map[key]*keyCount // guarded by mu; never more than maxKeys
	other   *keyCount
}

// durationKey is what the time of a request is recorded by.
type durationKey struct{ front, outcome string }

func newMetrics(meter metric.Meter, maxKeys int, budget *Budget) (*metrics, error) {
	m := &metrics{
		maxKeys: maxKeys,
		known:   make(map[key]*keyCount),
		other:   &keyCount{option: optionOf(otherKey)},

		durations: make(map[durationKey]metric.MeasurementOption),
	}
	for _, front := range []string{frontHTTP, frontGRPC, frontStream} {
		for _, outcome := range []string{outcomeAccepted, reasonInvalid, reasonOverloaded, reasonUnavailable, reasonUnknown} {
			m.durations[durationKey{front, outcome}] = metric.WithAttributeSet(attribute.NewSet(
				attribute.String("front", front), attribute.String("outcome", outcome)))
		}
	}
	var errs [5]error
	accepted, err := meter.Int64ObservableCounter("waybill.ingest.events.accepted",
		metric.WithUnit("{event}"), metric.WithDescription("Events made durable, by source and type; the rest under other."))
	errs[0] = err
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
		m.observe(o, accepted)
		return nil
	}, used, limit, accepted)
	if err != nil {
		return nil, fmt.Errorf("observe the intake: %w", err)
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
	var unknown []key
	m.mu.RLock()
	full := len(m.known) >= m.maxKeys
	for i := range items {
		if items[i].fault != nil {
			continue
		}
		k := key{items[i].event.Source, items[i].event.Type}
		switch count, ok := m.known[k]; {
		case ok:
			count.accepted.Add(1)
		case full:
			m.other.accepted.Add(1)
		default:
			unknown = append(unknown, k)
		}
	}
	m.mu.RUnlock()
	for _, k := range unknown {
		m.place(k).accepted.Add(1)
	}
}

// place returns the count of a key, which gets one while there is room.
func (m *metrics) place(k key) *keyCount {
	m.mu.Lock()
	defer m.mu.Unlock()
	if count, ok := m.known[k]; ok {
		return count
	}
	if len(m.known) >= m.maxKeys {
		return m.other
	}
	k = key{strings.Clone(k.source), strings.Clone(k.typ)} // they are parts of what an event is held by
	count := &keyCount{option: optionOf(k)}
	m.known[k] = count
	return count
}

// observe says how many events were accepted.
func (m *metrics) observe(o metric.Observer, accepted metric.Int64Observable) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, count := range m.known {
		o.ObserveInt64(accepted, count.accepted.Load(), count.option)
	}
	if n := m.other.accepted.Load(); n > 0 {
		o.ObserveInt64(accepted, n, m.other.option)
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
		m.refused.Add(context.Background(), n, m.option(k),
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
func (m *metrics) option(k key) metric.MeasurementOption {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if count, ok := m.known[k]; ok {
		return count.option
	}
	return m.other.option
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
