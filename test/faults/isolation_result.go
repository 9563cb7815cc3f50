package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// What must hold, of the medians of all pairs.
const (
	// mostChange is how much the other sink may get worse, as a share.
	mostChange = 0.10
	// leastDrain is how fast a backlog drains at least, as a share of the highest rate.
	leastDrain = 0.80
)

// isolationResult is what is written and printed. Latencies are in milliseconds, from when a
// call was due; rates in events a second.
type isolationResult struct {
	Down        string             `json:"down"`
	Measured    string             `json:"measured"`
	Rate        float64            `json:"rate"`
	Seconds     float64            `json:"seconds"`
	Peak        map[string]float64 `json:"highest_rate"`
	Pairs       []*isolationPair   `json:"pairs"`
	Retransmits int                `json:"retransmits"`
	RSS         map[string]float64 `json:"rss_mib"`
	Medians     map[string]float64 `json:"medians"`
	Violations  []string           `json:"violations"`
}

// isolationPair is a measurement without and one with the fault.
type isolationPair struct {
	Well  figures `json:"well"`
	Ill   figures `json:"ill"`
	Drain drain   `json:"drain"`
}

// figures are of the sink that was measured, and of ingest.
type figures struct {
	PerSecond     float64            `json:"per_second"`
	P50           float64            `json:"p50_ms"`
	P99           float64            `json:"p99_ms"`
	AcceptP50     float64            `json:"accept_p50_ms"`
	AcceptP99     float64            `json:"accept_p99_ms"`
	Doubles       int                `json:"doubles"`
	CPU           map[string]float64 `json:"cpu"` // cores
	CatchUpP50    float64            `json:"catch_up_p50_ms,omitempty"`
	CatchUpP99    float64            `json:"catch_up_p99_ms,omitempty"`
	CatchUpEvents int                `json:"catch_up_events,omitempty"`
}

// drain is how the sink that was away caught up, under the load.
type drain struct {
	Backlog   int     `json:"backlog"` // events when it was back
	Resumed   float64 `json:"resumed_s"`
	Seconds   float64 `json:"seconds"` // from the first event taken to the last of the backlog
	PerSecond float64 `json:"per_second"`
	Doubles   int     `json:"doubles"`
}

// compare makes figures of a pair.
func (m *measurement) compare(well, ill *phase) *isolationPair {
	p := &isolationPair{Well: m.figures(well, well.from, well.to), Ill: m.figures(ill, ill.from, ill.to)}
	p.Drain = m.drained(ill)
	done := ill.up.Add(time.Duration((p.Drain.Resumed + p.Drain.Seconds) * float64(time.Second)))
	during := m.latencies(ill, ill.up, done)
	p.Ill.CatchUpEvents, p.Ill.CatchUpP50, p.Ill.CatchUpP99 = len(during), quantile(during, 0.5), quantile(during, 0.99)
	return p
}

func (m *measurement) figures(p *phase, from, to time.Time) figures {
	t := p.taken[m.isolation.up()]
	latencies := m.latencies(p, from, to)
	var accepts []float64
	for _, call := range m.load.calls[p.first:p.past] {
		if !call.due.Before(from) && call.due.Before(to) {
			accepts = append(accepts, call.answered.Sub(call.due).Seconds()*1000)
		}
	}
	return figures{
		PerSecond: t.rate(from, to), P50: quantile(latencies, 0.5), P99: quantile(latencies, 0.99),
		AcceptP50: quantile(accepts, 0.5), AcceptP99: quantile(accepts, 0.99), Doubles: t.doubles, CPU: p.cpu,
	}
}

// latencies are those of the events that were due in a time, in the sink that is measured.
func (m *measurement) latencies(p *phase, from, to time.Time) []float64 {
	t := p.taken[m.isolation.up()]
	var out []float64
	for i, call := range m.load.calls[p.first:p.past] {
		if call.due.Before(from) || !call.due.Before(to) {
			continue
		}
		for _, at := range t.at[i*callEvents : (i+1)*callEvents] {
			out = append(out, at.Sub(call.due).Seconds()*1000)
		}
	}
	return out
}

// drained says how the backlog went. Its rate leaves out the first events that the sink took,
// all of one moment: how long they had been under way is not known.
func (m *measurement) drained(p *phase) drain {
	t := p.taken[m.down]
	d := drain{Doubles: t.doubles}
	var first, last time.Time
	for i, call := range m.load.calls[p.first:p.past] {
		for _, at := range t.at[i*callEvents : (i+1)*callEvents] {
			if at.Before(p.up) {
				continue // it was on its way when the sink went, or the outage was not complete
			}
			if first.IsZero() || at.Before(first) {
				first = at
			}
			if call.answered.Before(p.up) {
				d.Backlog++
				if at.After(last) {
					last = at
				}
			}
		}
	}
	d.Resumed, d.Seconds = first.Sub(p.up).Seconds(), last.Sub(first).Seconds()
	d.PerSecond = t.rate(first.Add(1), last.Add(1))
	return d
}

// rate is how many events the sink took a second in a time, from inclusive.
func (t *taken) rate(from, to time.Time) float64 {
	n := 0
	for _, at := range t.at {
		if !at.Before(from) && at.Before(to) {
			n++
		}
	}
	return float64(n) / to.Sub(from).Seconds()
}

// quantile sorts values and returns one; 0 where there are none.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	return values[min(int(q*float64(len(values))), len(values)-1)]
}

// watched adds what was seen of the processes, and judges.
func (m *measurement) watched(r *isolationResult) {
	w := m.system.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	r.RSS = map[string]float64{}
	for name, bytes := range w.rss {
		r.RSS[name] = float64(bytes) / (1 << 20)
		if slices.Contains(processes, name) && bytes > maxRSS {
			r.violation("%s had %.0f MiB resident; the limit is %d", name, r.RSS[name], maxRSS>>20)
		}
	}
	r.Violations = append(r.Violations, w.problems...)
	r.judge()
}

func (r *isolationResult) violation(format string, args ...any) {
	r.Violations = append(r.Violations, fmt.Sprintf(format, args...))
}

func (r *isolationResult) judge() {
	r.Medians = map[string]float64{}
	median := func(name string, of func(p *isolationPair) float64) float64 {
		var values []float64
		for _, p := range r.Pairs {
			values = append(values, of(p))
		}
		r.Medians[name] = quantile(values, 0.5)
		return r.Medians[name]
	}
	if x := median("throughput", func(p *isolationPair) float64 { return p.Ill.PerSecond / p.Well.PerSecond }); x < 1-mostChange {
		r.violation("%s took %.3f of its events a second while %s was down", r.Measured, x, r.Down)
	}
	if x := median("latency_p50", func(p *isolationPair) float64 { return p.Ill.P50 / p.Well.P50 }); x > 1+mostChange {
		r.violation("the median latency of %s was %.3f times as long while %s was down", r.Measured, x, r.Down)
	}
	// Not judged: three or four calls decide it, and it differs more between two measurements
	// without a fault.
	median("latency_p99", func(p *isolationPair) float64 { return p.Ill.P99 / p.Well.P99 })
	if x := median("drain", func(p *isolationPair) float64 { return p.Drain.PerSecond / r.Peak[r.Down] }); x < leastDrain {
		r.violation("the backlog of %s drained at %.3f of its highest rate", r.Down, x)
	}
	if r.Retransmits > 0 {
		r.violation("%d batches were retransmitted", r.Retransmits)
	}
}

func (r *isolationResult) save(dir string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the result: %w", err)
	}
	path := filepath.Join(dir, "isolation-"+r.Down+".json")
	if err := os.WriteFile(path, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("store the result: %w", err)
	}
	return nil
}

func (p *isolationPair) String() string {
	return fmt.Sprintf("%.0f → %.0f /s, p50 %.1f → %.1f ms, p99 %.1f → %.1f ms; accept p50 %.1f → %.1f, p99 %.1f → %.1f ms; while catching up p50 %.1f, p99 %.1f ms; "+
		"%d drained at %.0f/s in %.1f s after %.1f s; doubles %d",
		p.Well.PerSecond, p.Ill.PerSecond, p.Well.P50, p.Ill.P50, p.Well.P99, p.Ill.P99,
		p.Well.AcceptP50, p.Ill.AcceptP50, p.Well.AcceptP99, p.Ill.AcceptP99, p.Ill.CatchUpP50, p.Ill.CatchUpP99,
		p.Drain.Backlog, p.Drain.PerSecond, p.Drain.Seconds, p.Drain.Resumed, p.Drain.Doubles)
}

func (r *isolationResult) print(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s down, %s measured; %g events/s; the highest rates: %s %.0f/s, %s %.0f/s\n", r.Down, r.Measured, r.Rate,
		ingressSink, r.Peak[ingressSink], archiveSink, r.Peak[archiveSink])
	table := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "pair\tevents/s\twith\tp50, ms\twith\tp99, ms\twith\tbacklog\tresumed, s\tdrained/s\tof highest\t")
	for i, p := range r.Pairs {
		fmt.Fprintf(table, "%d\t%.0f\t%.0f\t%.1f\t%.1f\t%.1f\t%.1f\t%d\t%.1f\t%.0f\t%.2f\t\n", i+1, p.Well.PerSecond, p.Ill.PerSecond,
			p.Well.P50, p.Ill.P50, p.Well.P99, p.Ill.P99, p.Drain.Backlog, p.Drain.Resumed, p.Drain.PerSecond, p.Drain.PerSecond/r.Peak[r.Down])
	}
	fmt.Fprintf(table, "median\t\t×%.3f\t\t×%.3f\t\t×%.3f\t\t\t\t×%.2f\t\n", r.Medians["throughput"], r.Medians["latency_p50"], r.Medians["latency_p99"], r.Medians["drain"])
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(&b, "retransmitted %d; most memory, MiB:", r.Retransmits)
	for _, name := range slices.Sorted(maps.Keys(r.RSS)) {
		if slices.Contains(processes, name) {
			fmt.Fprintf(&b, " %s %.0f", name, r.RSS[name])
		}
	}
	fmt.Fprintln(&b)
	for _, v := range r.Violations {
		fmt.Fprintf(&b, "VIOLATION: %s\n", v)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
