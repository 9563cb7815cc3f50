package bench

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// storeGroup is parts that are measured in turn, so many times each.
type storeGroup struct {
	parts []storePart
	runs  int
}

// storeTurn is one measurement of a part, the run-th of so many, from 0.
type storeTurn struct {
	part      storePart
	run, runs int
}

// name tells the turn from the others of its part, if there are any.
func (t storeTurn) name() string {
	return ofRun(t.part.name, t.run, t.runs)
}

// compared reports whether the part is compared with others of its group, or with itself.
func (p storePart) compared() bool { return p.group != sizesGroup }

// storeGroups are the parts in their order. Those that nothing is compared with are groups of their own.
func storeGroups(parts []storePart, runs int) []storeGroup {
	var out []storeGroup
	for len(parts) > 0 {
		n, times := 1, 1
		if parts[0].compared() {
			times = runs
			for n < len(parts) && parts[n].group == parts[0].group {
				n++
			}
		}
		out = append(out, storeGroup{parts[:n], times})
		parts = parts[n:]
	}
	return out
}

// turns are the measurements of a group in their order: all parts once, then all in reverse, and so
// on, so that what drifts meanwhile favours none.
func (g storeGroup) turns() []storeTurn {
	var out []storeTurn
	for run := range g.runs {
		for _, part := range inTurn(g.parts, run) {
			out = append(out, storeTurn{part, run, g.runs})
		}
	}
	return out
}

// storeResult is what one turn found.
type storeResult struct {
	values  map[string]float64 // by column of the table
	phases  []phase
	stayed  int64 // batches that the archive never took
	retries int64 // transactions that were tried again
}

// measure lets one measure all turns, and reports each group once it was measured. What a group has
// when a turn fails is reported too: a run may last for hours.
func (m *storeMeasure) measure(ctx context.Context, groups []storeGroup, one func(context.Context, storeTurn) (storeResult, error)) error {
	for _, group := range groups {
		results := map[string][]storeResult{}
		var failed error
		for _, turn := range group.turns() {
			m.bench.live(turn.name())
			result, err := one(ctx, turn)
			if err != nil {
				failed = fmt.Errorf("%s: %w", turn.name(), err)
				break
			}
			results[turn.part.name] = append(results[turn.part.name], result)
		}
		for _, part := range group.parts {
			if len(results[part.name]) > 0 {
				m.report(part, results[part.name])
			}
		}
		if failed != nil {
			return failed
		}
	}
	return nil
}

// spreadColumns are those of which the lowest and the highest of several runs are given too.
var spreadColumns = []string{"events", "CPU of Postgres"}

// storeRow makes the row of a part out of its runs, of which there must be some: medians of what each
// run knows.
func storeRow(name string, results []storeResult) TableRow {
	var runs []map[string]float64
	var retries int64
	for _, r := range results {
		runs = append(runs, r.values)
		retries += r.retries
	}
	row := TableRow{Name: name, Values: medianValues(runs, spreadColumns...)}
	row.Values["runs"] = float64(len(results))
	var remarks []string
	if retries > 0 {
		remarks = append(remarks, fmt.Sprintf("%d transactions were tried again", retries))
	}
	row.Remark = strings.Join(append(remarks, noteLevels(&row)...), "; ")
	return row
}

// noteLevels says how often the indexes would have to be built anew: one that is level never has to
// be, however much of it is free. It takes out of the row what cannot be told, or is no number.
func noteLevels(row *TableRow) []string {
	settled := settledDown(*row)
	var remarks []string
	for _, table := range []string{"batches", "events"} {
		column := doublesColumn(table)
		hours, known := row.Values[column]
		switch {
		case !settled || !known:
			delete(row.Values, column)
		case math.IsInf(hours, 1):
			delete(row.Values, column)
			remarks = append(remarks, "the index of "+table+" is level: no REINDEX")
		default:
			left := time.Duration(hours * float64(time.Hour))
			remarks = append(remarks, fmt.Sprintf("the index of %s doubles in %v", table, left.Round(time.Second)))
		}
	}
	if !settled {
		remarks = append(remarks, "too short to tell of levels")
	}
	return remarks
}

// report makes figures of a part's runs.
func (m *storeMeasure) report(part storePart, results []storeResult) {
	row := storeRow(part.name, results)
	m.bench.add(m.table, row)
	if part.sleepers > 0 {
		m.bench.overRuns(Shape, part.name+": batches that stayed", valuesOf(results, func(r storeResult) float64 { return float64(r.stayed) }), "batches")
	}
	if part.held {
		m.reportHeld(results)
	}
	if part.group == sizesGroup {
		m.noteSizes(row)
		m.xidAge(row)
	}
}

// reportHeld compares what came before a transaction was held open, meanwhile and after. What is
// compared is of the same run each time.
func (m *storeMeasure) reportHeld(results []storeResult) {
	m.held = true
	m.lost = append(m.lost, median(valuesOf(results, func(r storeResult) float64 { return 100 * (1 - r.phases[1].rate/r.phases[0].rate) })))
	cpuKnown := !slices.ContainsFunc(results, func(r storeResult) bool {
		return slices.ContainsFunc(r.phases, func(p phase) bool { return p.cpu <= 0 })
	})
	for i, when := range []string{"before", fmt.Sprintf("meanwhile, %v", m.length.Round(time.Second)), "after"} {
		m.bench.overRuns(Absolute, "held-open transaction: "+when, valuesOf(results, func(r storeResult) float64 { return r.phases[i].rate }), "events/s")
		if cpuKnown {
			m.bench.overRuns(Absolute, "held-open transaction: CPU of Postgres, "+when, valuesOf(results, func(r storeResult) float64 { return r.phases[i].cpu }), "µs/event")
		}
	}
	if cpuKnown {
		ratios := valuesOf(results, func(r storeResult) float64 { return r.phases[1].cpu / r.phases[0].cpu })
		m.bench.overRuns(Shape, "held-open transaction: CPU of Postgres an event, meanwhile by before", ratios, "ratio")
	}
}
