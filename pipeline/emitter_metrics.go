package pipeline

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// emitterKeys is how many sources and types are counted apart, as in ingest.
const emitterKeys = 200

// emitterMetrics counts what became of events, under the names that ingest has for its own.
type emitterMetrics struct {
	accepted *KeyCounts
	counter  metric.Int64ObservableCounter // of accepted
	refused  metric.Int64Counter
	duration metric.Float64Histogram
	outcomes map[string]metric.MeasurementOption // of duration
}

// Outcomes of events that were submitted, beside those that refusalOf names.
const outcomeAccepted = "accepted"

func newEmitterMetrics(m metric.Meter) (*emitterMetrics, error) {
	e := &emitterMetrics{accepted: NewKeyCounts(emitterKeys), outcomes: map[string]metric.MeasurementOption{}}
	for _, outcome := range []string{outcomeAccepted, "overloaded", "unavailable", "outcome-unknown"} {
		e.outcomes[outcome] = metric.WithAttributeSet(attribute.NewSet(attribute.String("front", frontEmitter), attribute.String("outcome", outcome)))
	}
	var errs [3]error
	e.counter, errs[0] = m.Int64ObservableCounter("waybill.ingest.events.accepted",
		metric.WithUnit("{event}"), metric.WithDescription("Events made durable, by source and type; the rest under other."))
	e.refused, errs[1] = m.Int64Counter("waybill.ingest.events.refused",
		metric.WithUnit("{event}"), metric.WithDescription("Events not accepted, by reason, source and type; the rest under other."))
	e.duration, errs[2] = m.Float64Histogram("waybill.ingest.accept.duration",
		metric.WithUnit("s"), metric.WithDescription("From the start of a request to the end of its transaction, for requests that were submitted, by front and outcome."),
		metric.WithExplicitBucketBoundaries(.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10))
	return e, metricsError(errs[:])
}

// observe exports what is counted by source and type.
func (e *emitterMetrics) observe(m metric.Meter) error {
	_, err := m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		e.accepted.Observe(o, e.counter)
		return nil
	}, e.counter)
	if err != nil {
		return fmt.Errorf("observe the accepted events: %w", err)
	}
	return nil
}

// answered counts events that were submitted together.
func (e *emitterMetrics) answered(started time.Time, events []Event, err error) {
	outcome := outcomeAccepted
	if err != nil {
		outcome = refusalOf(err)
	}
	e.duration.Record(context.Background(), time.Since(started).Seconds(), e.outcomes[outcome])
	if err == nil {
		e.accepted.Add(keysOfEvents(events))
		return
	}
	for i := range events {
		e.count(events[i].Source, events[i].Type, outcome)
	}
}

func keysOfEvents(events []Event) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for i := range events {
			if !yield(events[i].Source, events[i].Type) {
				return
			}
		}
	}
}

// refusedOne counts an event that was not submitted, and returns why.
func (e *emitterMetrics) refusedOne(event *CloudEvent, err error) error {
	if err != nil {
		e.count(event.Source, event.Type, refusalOf(err))
	}
	return err
}

// refusedAll is refusedOne for events of one call.
func (e *emitterMetrics) refusedAll(events []CloudEvent, err error) error {
	for i := range events {
		_ = e.refusedOne(&events[i], err) // is err
	}
	return err
}

func (e *emitterMetrics) count(source, typ, reason string) {
	e.refused.Add(context.Background(), 1, e.accepted.Option(source, typ), metric.WithAttributes(attribute.String("reason", reason)))
}

// refusalOf names why events were not accepted, in ingest's words.
func refusalOf(err error) string {
	var fault *InvalidEventError
	switch {
	case errors.As(err, &fault) && fault.TooLarge:
		return "too-large"
	case fault != nil:
		return "invalid"
	case errors.Is(err, ErrOverloaded):
		return "overloaded"
	case errors.Is(err, ErrOutcomeUnknown):
		return "outcome-unknown"
	case errors.Is(err, ErrUnavailable):
		return "unavailable"
	}
	return "canceled" // the caller's context had ended
}
