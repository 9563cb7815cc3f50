package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Stage is a load and what became of it. Rates are events/s of the measured window.
type Stage struct {
	System string `json:"system"`
	Load   Load   `json:"load"`

	// Seconds is the length of the window, DrainSeconds of what followed until nothing waited.
	Seconds      float64 `json:"seconds"`
	DrainSeconds float64 `json:"drain_seconds"`
	// Events of the window that were offered, accepted, and neither.
	Offered  int64            `json:"offered"`
	Accepted int64            `json:"accepted"`
	Failed   int64            `json:"failed"`
	Failures map[string]int64 `json:"failures,omitempty"` // calls, warm-up included, by what they failed with
	// AcceptRate and DeliverRate are what was accepted, and what each sink took.
	OfferRate   float64            `json:"offer_rate"`
	AcceptRate  float64            `json:"accept_rate"`
	DeliverRate map[string]float64 `json:"deliver_rate"`
	// BacklogGrowth is how many events more waited for each sink at the end of the window
	// than at its beginning.
	BacklogGrowth map[string]int64 `json:"backlog_growth"`
	// Saturated says why the latencies say nothing; empty: they do.
	Saturated string `json:"saturated,omitempty"`

	// Accept is the latency from when a call was due to its answer; Lag how late the
	// generator itself began calls.
	Accept Quantiles `json:"accept"`
	Lag    Quantiles `json:"generator_lag"`
	// Ingress is the latency from the answer to the arrival at the endpoint (0 where the
	// event was faster than the answer), EndToEnd from when the call was due.
	Ingress  Quantiles `json:"accepted_to_ingress"`
	EndToEnd Quantiles `json:"due_to_ingress"`

	// CPU is microseconds an event by process, from the beginning of the window to the end of
	// the drain, over the events that were accepted meanwhile.
	CPU map[string]float64 `json:"cpu_us_per_event"`
	// WAL is bytes an event, of the same time.
	WAL float64 `json:"wal_bytes_per_event"`
	// Allocations is how many objects the first ingest allocated an event, in the window.
	Allocations float64 `json:"ingest_allocations_per_event"`
	// Memory is the most that each process had resident since it began, bytes.
	Memory map[string]int64 `json:"peak_rss_bytes"`
	// MaxQueued and MaxOldest are the highest of the window's samples, by sink.
	MaxQueued map[string]int64   `json:"max_queued"`
	MaxOldest map[string]float64 `json:"max_oldest_age_s"`

	Samples []Sample `json:"samples"`

	acceptCurve, ingressCurve *hdrhistogram.Histogram

	from, to tick // of the window
}

// inWindow reports whether what was due then is of the window.
func (st *Stage) inWindow(due tick) bool { return due >= st.from && due <= st.to }

// markTries is how often a stage's beginning and end are looked at until that succeeds.
const markTries = 3

// mark is what is known at one moment of a stage.
type mark struct {
	at       time.Time
	offered  int64
	sample   Sample
	accepted int64
	mallocs  float64 // of the first ingest, since it began
}

// Run puts a load on a system, waits until everything is delivered, and returns what was
// measured; the report gets it too.
func (s *System) Run(ctx context.Context, load Load) (*Stage, error) {
	return s.RunThen(ctx, load, nil)
}

// RunThen is Run; then, which may be nil, is called between the end of the load and the wait.
func (s *System) RunThen(ctx context.Context, load Load, then func(context.Context) error) (*Stage, error) {
	stage, err := s.run(ctx, load, then)
	if err != nil {
		return nil, fmt.Errorf("system %s: stage %s: %w", s.Name, load.Name, err)
	}
	s.bench.report.Stages = append(s.bench.report.Stages, stage)
	s.bench.config.Say(stage.String())
	return stage, nil
}

func (s *System) run(ctx context.Context, load Load, then func(context.Context) error) (*Stage, error) {
	s.bench.config.Settings.apply(&load)
	g, err := newGenerator(load, s.ledger, addresses{s.httpURL, s.grpcAddr, s.databaseURL, s.natsURL})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop, stopped := make(chan struct{}), make(chan struct{})
	s.prober.enter(load.Name + " warm-up")
	go func() { defer close(stopped); g.run(ctx, stop) }()
	began, end, err := s.window(ctx, g)
	close(stop)
	<-stopped
	err = errors.Join(err, g.sender.close())
	if err != nil {
		return nil, err
	}
	s.prober.enter(load.Name + " drain")
	if then != nil {
		if err := then(ctx); err != nil {
			return nil, err
		}
	}
	if err := s.drain(ctx); err != nil {
		return nil, err
	}
	drained, err := s.mark(ctx)
	if err != nil {
		return nil, err
	}
	s.prober.enter("")
	return s.evaluate(g, began, end, drained)
}

// window lets the load warm up and then be measured.
func (s *System) window(ctx context.Context, g *generator) (began, end mark, err error) {
	pause(ctx, g.load.WarmUp)
	if began, err = s.mark(ctx); err != nil {
		return began, end, err
	}
	g.openWindow(began.at)
	s.prober.enter(g.load.Name + " window")
	profiled := s.startProfiles(ctx, g.load)
	defer func() { err = errors.Join(err, profiled()) }()
	timer := time.NewTimer(g.load.For)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-g.exhausted:
	case <-ctx.Done():
		return began, end, ctx.Err()
	}
	end, err = s.mark(ctx)
	return began, end, err
}

func (s *System) mark(ctx context.Context) (mark, error) {
	sample, err := s.prober.look(ctx)
	for try := 1; err != nil && try < markTries && ctx.Err() == nil; try++ {
		sample, err = s.prober.look(ctx)
	}
	if err != nil {
		return mark{}, err
	}
	out := mark{at: sample.At, offered: sample.Offered, accepted: sample.Accepted, sample: sample}
	if s.stack != nil {
		families, err := s.stack.Metrics(ctx, "ingest-1")
		if err != nil {
			return mark{}, err
		}
		for _, m := range families["go_memstats_mallocs_total"].GetMetric() {
			out.mallocs = m.GetCounter().GetValue()
		}
	}
	return out, nil
}

// evaluate makes figures of what was seen.
func (s *System) evaluate(g *generator, began, end, drained mark) (*Stage, error) {
	window := end.at.Sub(began.at)
	lag := g.lag.merged()
	st := &Stage{
		System: s.Name, Load: g.load, Seconds: window.Seconds(), DrainSeconds: drained.at.Sub(end.at).Seconds(),
		OfferRate:   float64(end.offered-began.offered) / window.Seconds(),
		AcceptRate:  float64(end.accepted-began.accepted) / window.Seconds(),
		DeliverRate: map[string]float64{}, BacklogGrowth: map[string]int64{},
		MaxQueued: map[string]int64{}, MaxOldest: map[string]float64{}, CPU: map[string]float64{},
		Saturated: g.saturated(lag), Lag: quantilesOf(lag), Failures: g.errs,
		Samples: s.prober.since(began.at),
	}
	st.acceptCurve = g.accept.merged()
	st.Accept = quantilesOf(st.acceptCurve)
	for sink, after := range end.sample.Delivered {
		delivered := after - began.sample.Delivered[sink]
		st.DeliverRate[sink] = float64(delivered) / window.Seconds()
		st.BacklogGrowth[sink] = end.accepted - began.accepted - delivered
	}
	s.latencies(st, began, end)
	if events := float64(drained.accepted - began.accepted); events > 0 {
		for process, used := range drained.sample.CPU {
			st.CPU[process] = float64(used-began.sample.CPU[process]) / float64(time.Microsecond) / events
		}
		st.WAL = float64(drained.sample.WAL-began.sample.WAL) / events
	}
	if accepted := end.accepted - began.accepted; accepted > 0 {
		st.Allocations = (end.mallocs - began.mallocs) / float64(accepted)
	}
	for _, sample := range st.Samples {
		if sample.At.After(end.at) {
			break
		}
		for sink, queued := range sample.Queued {
			st.MaxQueued[sink] = max(st.MaxQueued[sink], queued)
		}
		for sink, age := range sample.OldestAge {
			st.MaxOldest[sink] = max(st.MaxOldest[sink], age)
		}
	}
	var err error
	st.Memory, err = s.memory()
	return st, err
}

// latencies counts the events that were due in the window, and how long they took.
func (s *System) latencies(st *Stage, began, end mark) {
	st.from, st.to = s.ledger.tickOf(began.at), s.ledger.tickOf(end.at)
	endToEnd := newHistogram()
	st.ingressCurve = newHistogram()
	s.ledger.each(0, s.ledger.reserved.Load(), func(_ int64, due, accepted, arrived tick, _ uint32) {
		switch {
		case !st.inWindow(due):
			return
		case accepted == 0:
			st.Offered++
			st.Failed++
			return
		}
		st.Offered++
		st.Accepted++
		if arrived != 0 {
			recordInto(endToEnd, time.Duration(arrived-due)*tickLength)
			recordInto(st.ingressCurve, time.Duration(max(arrived, accepted)-accepted)*tickLength)
		}
	})
	st.Ingress, st.EndToEnd = quantilesOf(st.ingressCurve), quantilesOf(endToEnd)
}

// Slowest is the lowest of the sinks' rates, which is what the system as a whole delivers.
func (st *Stage) Slowest() float64 {
	slowest := -1.0
	for _, rate := range st.DeliverRate {
		if slowest < 0 || rate < slowest {
			slowest = rate
		}
	}
	return max(slowest, 0)
}

// TotalCPU is microseconds an event of all processes but the benchmark's own.
func (st *Stage) TotalCPU() float64 {
	sum := 0.0
	for process, us := range st.CPU {
		if process != self {
			sum += us
		}
	}
	return sum
}

// String is the stage in a line.
func (st *Stage) String() string {
	line := fmt.Sprintf("%s %s: accepted %.0f/s", st.System, st.Load.Name, st.AcceptRate)
	for _, sink := range sortedKeys(st.DeliverRate) {
		line += fmt.Sprintf(", %s %.0f/s", sink, st.DeliverRate[sink])
	}
	line += fmt.Sprintf("; accept p50 %.2f p99 %.2f ms; accepted → ingress p50 %.2f p99 %.2f ms; CPU %.1f µs/event; WAL %.0f B/event; drained in %.1f s",
		st.Accept.P50, st.Accept.P99, st.Ingress.P50, st.Ingress.P99, st.TotalCPU(), st.WAL, st.DrainSeconds)
	if st.Failed > 0 {
		line += fmt.Sprintf("; %d not accepted", st.Failed)
	}
	if st.Saturated != "" {
		line += "; SATURATED: " + st.Saturated
	}
	return line
}
