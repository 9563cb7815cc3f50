package bench

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/waybillhq/waybill/internal/devrun"
)

// tracingOff is no part that is traced: no span is made, and no event is looked at.
const tracingOff = -1

// tracedParts are what tracing compares: the parts of the events that are traced.
var tracedParts = []float64{tracingOff, 0, 0.01, 1}

// spansOfEvent are those of an event that both sinks take at once (docs/tracing.md). The spans of
// batches are beside these.
const spansOfEvent = 9

func tracedPartName(part float64) string {
	if part == tracingOff {
		return "tracing off"
	}
	return fmt.Sprintf("%.0f %% traced", 100*part)
}

// tracingLoads are a rate that is kept up with whatever is traced, and the highest one.
func tracingLoads() []Load {
	steady, full := standard("2000/s in calls of 10"), fullLoad(256, 200)
	steady.Rate, steady.Events = 2000, 10
	full.Name = "calls of 100, as fast as they are taken"
	out := []Load{steady, full}
	for i := range out {
		out[i].WarmUp, out[i].For = time.Second, 5*time.Second
	}
	return out
}

// tracingRun is what one load was measured with.
type tracingRun struct {
	stage *Stage
	spans float64 // received, for each event that was accepted
}

type tracingRuns map[string]map[float64][]tracingRun // by load and part

// runTracing compares systems that trace different parts of their events, in turn. Their spans go
// to a receiver that only counts them.
func runTracing(ctx context.Context, b *Bench) error {
	runs := tracingRuns{}
	for _, load := range tracingLoads() {
		runs[load.Name] = map[float64][]tracingRun{}
	}
	err := compare(b.config.Settings.runs(), tracedParts, func(part float64, run int) error { return b.tracingRun(ctx, part, run, runs) })
	if err != nil {
		return err
	}
	for _, load := range tracingLoads() {
		b.tracingFigures(load.Name, runs[load.Name])
	}
	return nil
}

func (b *Bench) tracingRun(ctx context.Context, part float64, run int, runs tracingRuns) (err error) {
	sink, err := startSpanSink()
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := sink.close(); err == nil {
			err = closeErr
		}
	}()
	change := func(c *devrun.Config) { c.Env = append(slices.Clone(c.Env), tracingEnv(part, sink.addr)...) }
	of := b.config.Settings.runs()
	return b.with(ctx, ofRun(tracedPartName(part), run, of), change, func(s *System) error {
		for _, load := range tracingLoads() {
			name := load.Name
			load.Name = ofRun(name+", "+tracedPartName(part), run, of)
			events, spans := s.ledger.acceptedCount(), sink.spans.Load()
			st, err := s.Run(ctx, load)
			if err != nil {
				return err
			}
			came, accepted := sink.settled(ctx, spans), s.ledger.acceptedCount()-events
			runs[name][part] = append(runs[name][part], tracingRun{st, float64(came) / float64(max(1, accepted))})
		}
		return nil
	})
}

// tracingEnv lets processes trace a part of their events, with OpenTelemetry's own limits of what
// waits to be sent.
func tracingEnv(part float64, addr string) []string {
	if part == tracingOff {
		return []string{"OTEL_TRACES_EXPORTER=none"}
	}
	return []string{
		"OTEL_TRACES_EXPORTER=otlp", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://" + addr, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=grpc",
		"OTEL_TRACES_SAMPLER=parentbased_traceidratio", fmt.Sprintf("OTEL_TRACES_SAMPLER_ARG=%g", part),
		fmt.Sprintf("OTEL_BSP_SCHEDULE_DELAY=%d", spanDelay.Milliseconds()),
	}
}

// acceptedCount is how many events were accepted so far.
func (l *ledger) acceptedCount() (n int64) {
	l.each(0, l.reserved.Load(), func(_ int64, _, accepted, _ tick, _ uint32) {
		if accepted != 0 {
			n++
		}
	})
	return n
}

// tracingFigures are the medians of a load, and what they are in relation to tracing that is off.
func (b *Bench) tracingFigures(load string, byPart map[float64][]tracingRun) {
	values := func(part float64, value func(*Stage) float64) []float64 {
		return valuesOf(byPart[part], func(r tracingRun) float64 { return value(r.stage) })
	}
	byOff := func(part float64, value func(*Stage) float64) []float64 {
		these, off := values(part, value), values(tracingOff, value)
		for run := range these {
			these[run] /= off[run]
		}
		return these
	}
	rate := func(st *Stage) float64 { return st.AcceptRate }
	for _, part := range tracedParts {
		name := load + ", " + tracedPartName(part)
		b.overRuns(Absolute, name+": accepted", values(part, rate), "events/s")
		b.overRuns(Absolute, name+": CPU of all processes but this", values(part, (*Stage).TotalCPU), "µs/event")
		for _, process := range sortedKeys(byPart[part][0].stage.CPU) {
			if process != self {
				b.overRuns(Absolute, name+": CPU of "+process, values(part, func(st *Stage) float64 { return st.CPU[process] }), "µs/event")
			}
		}
		if part == tracingOff {
			continue
		}
		b.overRuns(Shape, name+": rate by that of tracing off", byOff(part, rate), "ratio")
		b.overRuns(Shape, name+": CPU by that of tracing off", byOff(part, (*Stage).TotalCPU), "ratio")
		b.tracingSpans(name, part, byPart[part])
	}
}

// tracingSpans says how many spans came, and whether processes had to drop some: then tracing all of
// them would cost more.
func (b *Bench) tracingSpans(name string, part float64, runs []tracingRun) {
	came := valuesOf(runs, func(r tracingRun) float64 { return r.spans })
	b.overRuns(Shape, name+": spans received", came, "an event")
	// Of a small part it is chance how many events are sampled.
	if part == 1 && median(came) < 0.99*spansOfEvent {
		b.warn("%s: %.1f spans came of each event, of %d: a process drops what it cannot send (OTEL_BSP_MAX_QUEUE_SIZE), or there were more than 128 events of a request or a batch, and so the figures are not of tracing everything", name, median(came), spansOfEvent)
	}
}
