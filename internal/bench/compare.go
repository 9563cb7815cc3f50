package bench

import (
	"fmt"
	"slices"
)

// comparing are the scenarios that compare things by themselves.
var comparing = []string{"payload", "errors", "outage", "slow-sink", "scale", "lanes", "tracing", "embedded", "outbox", "replay", "heads", "statements", "store"}

// Compares reports whether the scenario compares things by itself, each as often as Settings.Runs says.
func (s Scenario) Compares() bool { return slices.Contains(comparing, s.Name) }

// comparedRuns is how often things that are compared are measured, in turn: enough for a median
// that one disturbed run does not move.
const comparedRuns = 5

// runs is how often a scenario measures what it compares.
func (s Settings) runs() int {
	if s.Runs != nil {
		return *s.Runs
	}
	return comparedRuns
}

// inTurn returns what is compared in the order of a run: in every other one in reverse, so that
// what drifts meanwhile favours none.
func inTurn[T any](things []T, run int) []T {
	order := slices.Clone(things)
	if run%2 == 1 {
		slices.Reverse(order)
	}
	return order
}

// compare measures each of some things so many times, in turn. Runs count from 0.
func compare[T any](runs int, things []T, measure func(thing T, run int) error) error {
	for run := range runs {
		for _, thing := range inTurn(things, run) {
			if err := measure(thing, run); err != nil {
				return err
			}
		}
	}
	return nil
}

// ofRun tells one measurement of a thing from the others, if there are any.
func ofRun(name string, run, runs int) string {
	if runs == 1 {
		return name
	}
	return fmt.Sprintf("%s, run %d", name, run+1)
}

// median of values, of which there must be some.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// medianValues are the medians of the values that all runs know, by their names; of those in spread
// the lowest and the highest too, if there are several runs.
func medianValues(runs []map[string]float64, spread ...string) map[string]float64 {
	known, out := map[string][]float64{}, map[string]float64{}
	for _, values := range runs {
		for name, value := range values {
			known[name] = append(known[name], value)
		}
	}
	for name, values := range known {
		if len(values) < len(runs) {
			continue
		}
		out[name] = median(values)
		if len(runs) > 1 && slices.Contains(spread, name) {
			out[name+", lowest"], out[name+", highest"] = slices.Min(values), slices.Max(values)
		}
	}
	return out
}

// overRuns adds a figure of several runs to the report: their median, and the lowest and highest.
func (b *Bench) overRuns(kind Kind, name string, values []float64, unit string) {
	b.figure(kind, name, median(values), unit)
	if len(values) > 1 {
		b.quietFigure(kind, name+", lowest", slices.Min(values), unit)
		b.quietFigure(kind, name+", highest", slices.Max(values), unit)
	}
}

// valuesOf takes a value out of each run.
func valuesOf[T any](results []T, of func(T) float64) []float64 {
	out := make([]float64, len(results))
	for i, r := range results {
		out[i] = of(r)
	}
	return out
}

// ratiosOf compares a value of each run with that of the same run.
func ratiosOf(these, others []map[string]float64, value string) []float64 {
	out := make([]float64, len(these))
	for run := range these {
		out[run] = these[run][value] / others[run][value]
	}
	return out
}
