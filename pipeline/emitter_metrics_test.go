package pipeline

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/codes"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// counts collects what is there of each metric: the sums of counters and gauges, and how many
// values histograms have, by name, reason or outcome, and source.
func counts(t testing.TB, reader sdkmetric.Reader) map[[3]string]int64 {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := reader.Collect(context.Background(), &all); err != nil {
		t.Fatal(err)
	}
	got := map[[3]string]int64{}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			switch data := m.Data.(type) {
			case metricdata.Sum[int64]:
				for _, p := range data.DataPoints {
					reason, _ := p.Attributes.Value("reason")
					source, _ := p.Attributes.Value("source")
					got[[3]string{m.Name, reason.AsString(), source.AsString()}] += p.Value
				}
			case metricdata.Gauge[int64]:
				for _, p := range data.DataPoints {
					check, _ := p.Attributes.Value("check")
					got[[3]string{m.Name, check.AsString(), ""}] += p.Value
				}
			case metricdata.Histogram[float64]:
				for _, p := range data.DataPoints {
					outcome, _ := p.Attributes.Value("outcome")
					got[[3]string{m.Name, outcome.AsString(), ""}] += int64(p.Count)
				}
			}
		}
	}
	return got
}

// An emitter counts as ingest does, with the meter that it was given, and takes back what would
// keep its memory when it ends.
func TestEmitterMetrics(t *testing.T) {
	t.Parallel()
	reader := sdkmetric.NewManualReader()
	meter := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)).Meter("test")
	r := mustRig(t)
	e, stop := r.mustEmitter(t, func(c *EmitterConfig) { c.Meter = meter })
	if err := e.EmitBatch(t.Context(), emitted("/s", "1"), emitted("/s", "2")); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	e.EmitAsync(t.Context(), emitted("/s", "3"), func(err error) { done <- err })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	_ = e.Emit(t.Context(), CloudEvent{Source: "/s"}) // has no type
	got := counts(t, reader)
	for name, want := range map[[3]string]int64{
		{"waybill.ingest.events.accepted", "", "/s"}:           3,
		{"waybill.ingest.events.refused", "invalid", OtherKey}: 1, // only an accepted event gives its key a place
		{"waybill.ingest.accept.duration", "accepted", ""}:     2,
		{"waybill.health.problem", "commit", ""}:               0,
	} {
		if got[name] != want {
			t.Errorf("%v is %d, want %d", name, got[name], want)
		}
	}
	eventually(t, patience, "the lack of a janitor is a problem", func() bool {
		return counts(t, reader)[[3]string{"waybill.health.problem", "janitor", ""}] == 1
	})
	for _, name := range []string{"db.client.operation.duration", "waybill.flush.duration"} {
		if got[[3]string{name, "", ""}] == 0 {
			t.Errorf("the store and the ingester do not count %s with the emitter's meter", name)
		}
	}
	stop()
	for name := range counts(t, reader) {
		if name[0] == "waybill.ingest.events.accepted" || name[0] == "waybill.queue.events" || name[0] == "waybill.health.problem" {
			t.Errorf("after the stop there still is %v", name)
		}
	}
}

// recordingTracer notes the spans that have ended.
type recordingTracer struct {
	noop.Tracer

	mu    sync.Mutex // guards spans
	spans []recordedSpan
}

// recordedSpan is what is noted of a span.
type recordedSpan struct {
	name    string
	trace   trace.TraceID
	failure string // empty: it has none
	end     time.Time
}

func (r *recordingTracer) Start(ctx context.Context, name string, _ ...trace.SpanStartOption) (context.Context, trace.Span) {
	self, _ := DecidedSpan(ctx)
	return ctx, &openSpan{tracer: r, is: recordedSpan{name: name, trace: self.TraceID()}}
}

// openSpan belongs to one goroutine until it ends.
type openSpan struct {
	noop.Span

	tracer *recordingTracer
	is     recordedSpan
}

func (s *openSpan) SetStatus(_ codes.Code, description string) { s.is.failure = description }

func (s *openSpan) End(options ...trace.SpanEndOption) {
	config := trace.NewSpanEndConfig(options...)
	s.is.end = config.Timestamp()
	s.tracer.mu.Lock()
	defer s.tracer.mu.Unlock()
	s.tracer.spans = append(s.tracer.spans, s.is)
}

func (r *recordingTracer) recorded() []recordedSpan {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.spans)
}

type recordingProvider struct {
	noop.TracerProvider

	tracer *recordingTracer
}

func (p recordingProvider) Tracer(string, ...trace.TracerOption) trace.Tracer { return p.tracer }

// The acceptance of an emitted event is in the trace of the span that emitted it.
func TestEmittedEventsAreTraced(t *testing.T) {
	tracer := &recordingTracer{}
	r := mustRig(t)
	e, stop := r.mustEmitter(t, func(c *EmitterConfig) {
		c.Ingester.Tracing = NewTracing(recordingProvider{tracer: tracer}, func(trace.SpanContext, trace.TraceID) bool { return true })
	})
	parent := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{7}, SpanID: trace.SpanID{8}, TraceFlags: trace.FlagsSampled})
	ctx := trace.ContextWithSpanContext(t.Context(), parent)
	done := make(chan error, 1)
	e.EmitAsync(ctx, emitted("/s", "1"), func(err error) { done <- err })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := e.Emit(ctx, emitted("/s", "2")); err != nil {
		t.Fatal(err)
	}
	stop()
	names := map[string]int{}
	for _, s := range tracer.recorded() {
		if s.trace != parent.TraceID() {
			t.Errorf("the span %s is in the trace %v", s.name, s.trace)
		}
		names[s.name]++
	}
	if names["accept events"] != 2 || names["commit events"] != 2 || names["publish EVENTS"] == 0 {
		t.Errorf("there are spans %v", names)
	}
}

// An event whose caller stopped waiting has the spans of its acceptance all the same: the one ends when
// the caller left, the other when the transaction did.
func TestEventsAreTracedBeyondTheirCaller(t *testing.T) {
	tracer := &recordingTracer{}
	r := mustRig(t)
	e, _ := r.mustEmitter(t, func(c *EmitterConfig) {
		c.Ingester.Tracing = NewTracing(recordingProvider{tracer: tracer}, func(trace.SpanContext, trace.TraceID) bool { return true })
	})
	if err := e.Emit(t.Context(), emitted("/s", "1")); err != nil { // its key has a head
		t.Fatal(err)
	}
	release := mustHoldHeads(t, r.store)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := e.Emit(ctx, emitted("/s", "2")); !errors.Is(err, ErrOutcomeUnknown) {
		t.Fatalf("before the commit: %v", err)
	}
	left := time.Now()
	release()
	last := map[string]recordedSpan{}
	eventually(t, patience, "both events are traced to their commit", func() bool {
		n := map[string]int{}
		for _, s := range tracer.recorded() {
			n[s.name]++
			last[s.name] = s
		}
		return n["accept events"] == 2 && n["commit events"] == 2
	})
	accept, commit := last["accept events"], last["commit events"]
	if accept.failure != reasonOf(ErrOutcomeUnknown) || accept.end.After(left) {
		t.Errorf("the acceptance ended %v after its caller left, as %q", accept.end.Sub(left), accept.failure)
	}
	if commit.failure != "" || commit.end.Before(left) {
		t.Errorf("the transaction ended %v after the caller left, as %q", commit.end.Sub(left), commit.failure)
	}
}
