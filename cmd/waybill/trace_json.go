package main

import (
	"time"

	"github.com/waybillhq/waybill/internal/collector"
	"github.com/waybillhq/waybill/internal/journey"
)

// tracedEvent is what -o json prints of an event. Offsets are from At; shares are of Took, those of
// stages of the time from their first one's beginning until the sink had answered.
type tracedEvent struct {
	Source        string           `json:"source"`
	ID            string           `json:"id"`
	Type          string           `json:"type"`
	CorrelationID string           `json:"correlation_id"`
	TraceID       string           `json:"trace_id"`
	At            time.Time        `json:"at"`
	Took          float64          `json:"took_seconds"`
	NotStored     string           `json:"not_stored,omitempty"` // why
	Missing       []string         `json:"missing,omitempty"`    // what has no span
	Spans         []tracedSpan     `json:"spans"`
	Deliveries    []tracedDelivery `json:"deliveries,omitempty"`
	// Others are further events with spans in the trace, and ForeignSpans those of other programs
	// that the event does not hang under.
	Others       []journey.Name `json:"others,omitempty"`
	ForeignSpans int            `json:"foreign_spans,omitempty"`
}

type tracedSpan struct {
	Name       string            `json:"name"`
	Service    string            `json:"service"`
	Instance   string            `json:"instance,omitempty"`
	SpanID     string            `json:"span_id"`
	ParentID   string            `json:"parent_id,omitempty"`
	Foreign    bool              `json:"foreign,omitempty"` // of another program; its share is left out
	Offset     float64           `json:"offset_seconds"`
	Took       float64           `json:"took_seconds"`
	Share      float64           `json:"share,omitempty"`
	Failure    string            `json:"failure,omitempty"`
	Attributes map[string]string `json:"attributes,omitempty"`
}

type tracedDelivery struct {
	Sink      string        `json:"sink"`
	Outcome   string        `json:"outcome,omitempty"`
	Code      string        `json:"code,omitempty"`
	Tries     int           `json:"tries"`
	Processed int           `json:"processed"`
	Settled   bool          `json:"settled"`
	Stages    []tracedStage `json:"stages,omitempty"`
}

type tracedStage struct {
	Stage  string  `json:"stage"`
	Offset float64 `json:"offset_seconds"`
	Took   float64 `json:"took_seconds"`
	Share  float64 `json:"share,omitempty"` // none: behind the answer, or that has not come
}

func newTracedEvent(e *journey.Event) tracedEvent {
	f := frameOf(e)
	out := tracedEvent{
		Source: e.Source, ID: e.ID, Type: e.Type, CorrelationID: e.Correlation, TraceID: e.TraceID,
		At: f.start.UTC(), Took: inSeconds(f.took), NotStored: e.NotStored(), Missing: e.Missing(), Others: e.Others(), ForeignSpans: e.Foreign,
	}
	for _, list := range []struct {
		spans   []collector.Span
		foreign bool
	}{{e.Above, true}, {e.Spans, false}} {
		for i := range list.spans {
			s := &list.spans[i]
			span := tracedSpan{
				Name: s.Name, Service: s.Service, Instance: s.Instance, SpanID: s.ID, ParentID: s.Parent, Foreign: list.foreign,
				Offset: inSeconds(s.Start.Sub(f.start)), Took: inSeconds(s.Took()), Failure: s.Failure, Attributes: s.Attributes,
			}
			if !list.foreign {
				span.Share = f.share(s.Took())
			}
			out.Spans = append(out.Spans, span)
		}
	}
	for _, d := range e.Deliveries() {
		delivery := tracedDelivery{Sink: d.Sink, Outcome: d.Outcome, Code: d.Code, Tries: d.Tries, Processed: d.Processed, Settled: d.Settled}
		for _, s := range d.Stages {
			stage := tracedStage{Stage: s.Name, Offset: inSeconds(s.Start.Sub(f.start)), Took: inSeconds(s.Took)}
			stage.Share, _ = shareOf(&d, s)
			delivery.Stages = append(delivery.Stages, stage)
		}
		out.Deliveries = append(out.Deliveries, delivery)
	}
	return out
}

// inSeconds is a length as the query API knows it, which is to the microsecond.
func inSeconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1e6 }
