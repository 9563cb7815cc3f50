package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/waybillhq/waybill/internal/devrun"
)

const (
	// embeddedEvents is how many events are emitted by all callers of a load, one a call.
	embeddedEvents = 100_000
	// embeddedBacklog is what waits when the endpoint is up again.
	embeddedBacklog = 300_000
)

// embeddedLoad is callers that emit events from this process to an endpoint that takes its time.
type embeddedLoad struct {
	callers, bytes int
	oneKey         bool          // all events have one source and type
	delay          time.Duration // of the endpoint
	outage         bool          // the endpoint is down meanwhile
}

func (l embeddedLoad) String() string {
	name := fmt.Sprintf("%d callers, %d B", l.callers, l.bytes)
	if l.oneKey {
		name += ", one key"
	}
	if l.outage {
		return name + ", outage"
	}
	return fmt.Sprintf("%s, endpoint answers after %v", name, l.delay)
}

// load is what is sent. The events of 10 callers take most of the time.
func (l embeddedLoad) load(name string) Load {
	out := standard(name)
	out.Transport, out.Events, out.Bytes, out.Callers, out.Connections = overEmitter, 1, l.bytes, l.callers, 1
	out.WarmUp, out.For, out.Count = time.Second, 2*time.Minute, embeddedEvents
	if l.oneKey {
		out.Keys = 1
	}
	if l.outage {
		out.WarmUp, out.Count = 0, embeddedBacklog
	}
	return out
}

// embeddedLoads are the loads of the scenario, of which only those of a part may be wanted. The
// outage is compared with full speed, which is measured with it.
func embeddedLoads(s Settings) ([]embeddedLoad, error) {
	var loads []embeddedLoad
	for _, delay := range []time.Duration{0, 50 * time.Millisecond} {
		for _, bytes := range []int{256, 1 << 10} {
			for _, callers := range []int{10, 100, 1000} {
				loads = append(loads, embeddedLoad{callers: callers, bytes: bytes, delay: delay})
			}
		}
	}
	for _, callers := range []int{10, 100, 1000} {
		loads = append(loads, embeddedLoad{callers: callers, bytes: 256, oneKey: true})
	}
	loads = append(loads, embeddedLoad{callers: 1000, bytes: 256, outage: true})
	return wantedParts(s, loads, embeddedLoad.String)
}

// embeddedRun is what one load was measured to do.
type embeddedRun struct {
	stage     *Stage
	delivered float64 // events/s until the endpoint had the last one
	drain     Drain   // of an outage
	full      float64 // of an outage: delivered without one
}

// runEmbedded emits events from this process, as a program does that has an emitter in it, with
// loads in turn.
func runEmbedded(ctx context.Context, b *Bench) error {
	loads, err := embeddedLoads(b.config.Settings)
	if err != nil {
		return err
	}
	// The archive is left out, as what this is compared with has none.
	change := func(c *devrun.Config) { c.WithoutArchive = true }
	if b.config.Given != nil {
		change = nil
	}
	return b.with(ctx, "embedded", change, func(s *System) error {
		runs := b.config.Settings.runs()
		done := map[embeddedLoad][]embeddedRun{}
		err := compare(runs, loads, func(l embeddedLoad, run int) error {
			measured, err := s.embedded(ctx, l, run, runs)
			done[l] = append(done[l], measured)
			return err
		})
		if err != nil {
			return err
		}
		for _, l := range loads {
			b.embeddedFigures(l, done[l])
		}
		return nil
	})
}

// embedded measures a load once.
func (s *System) embedded(ctx context.Context, l embeddedLoad, run, runs int) (out embeddedRun, err error) {
	if l.outage {
		full := l
		full.outage = false
		// Right before, so that both have the same machine.
		before, err := s.emitAll(ctx, full, ofRun("full speed", run, runs))
		if err != nil {
			return out, err
		}
		out.full = before.delivered
		out.stage, out.drain, err = s.outage(ctx, l.load(ofRun(l.String(), run, runs)), 0)
		return out, err
	}
	return s.emitAll(ctx, l, ofRun(l.String(), run, runs))
}

// emitAll emits the events of a load and waits until the endpoint has them.
func (s *System) emitAll(ctx context.Context, l embeddedLoad, name string) (out embeddedRun, err error) {
	s.receiver.delay.Store(int64(l.delay))
	defer s.receiver.delay.Store(0)
	if out.stage, err = s.Run(ctx, l.load(name)); err != nil {
		return out, err
	}
	took := time.Duration(s.ledger.last.Load()-int64(out.stage.from)) * tickLength
	out.delivered = float64(out.stage.Accepted) / took.Seconds()
	return out, nil
}

func (b *Bench) embeddedFigures(l embeddedLoad, runs []embeddedRun) {
	name := l.String() + ": "
	of := func(value func(*Stage) float64) []float64 {
		return valuesOf(runs, func(r embeddedRun) float64 { return value(r.stage) })
	}
	b.overRuns(Absolute, name+"accepted", of(func(st *Stage) float64 { return st.AcceptRate }), "events/s")
	if l.outage {
		b.overRuns(Absolute, name+"drain from when the endpoint is up", valuesOf(runs, func(r embeddedRun) float64 { return r.drain.Rate() }), "events/s")
		b.overRuns(Shape, name+"drain in relation to delivery without an outage", valuesOf(runs, func(r embeddedRun) float64 { return r.drain.Rate() / r.full }), "ratio")
		return
	}
	b.overRuns(Absolute, name+"delivered, until the endpoint has the last", valuesOf(runs, func(r embeddedRun) float64 { return r.delivered }), "events/s")
	b.overRuns(Absolute, name+"accept p50", of(func(st *Stage) float64 { return st.Accept.P50 }), "ms")
	b.overRuns(Absolute, name+"accept p99", of(func(st *Stage) float64 { return st.Accept.P99 }), "ms")
	b.overRuns(Absolute, name+"CPU of all other processes", of((*Stage).TotalCPU), "µs/event")
	b.overRuns(Absolute, name+"CPU of this process, the emitter, its callers and the endpoint", of(func(st *Stage) float64 { return st.CPU[self] }), "µs/event")
}
