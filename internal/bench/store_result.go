package bench

import (
	"context"
	"math"
	"time"
)

// Columns that target 10 goes by.
const (
	hotColumn    = "HOT updates of batches"
	growthColumn = "growth of the peak"
)

// doublesColumn is how long, in hours, it takes until the index of a table is twice as large.
func doublesColumn(table string) string { return "index of " + table + " doubles" }

// storeColumns are the figures of a part, medians of its runs.
var storeColumns = []Column{
	{"runs", "", Shape},
	{"events", "events/s", Absolute},
	{"events, lowest", "events/s", Absolute},
	{"events, highest", "events/s", Absolute},
	{"CPU of Postgres", "µs/event", Absolute},
	{"CPU of Postgres, lowest", "µs/event", Absolute},
	{"CPU of Postgres, highest", "µs/event", Absolute},
	{"turnovers", "", Shape},
	{hotColumn, "%", Shape},
	{"batches heap, half", "MiB", Absolute},
	{"batches heap, end", "MiB", Absolute},
	{"batches index, half", "MiB", Absolute},
	{"batches index, end", "MiB", Absolute},
	{"heads heap, end", "MiB", Absolute},
	{"heads index, end", "MiB", Absolute},
	{"events heap, half", "MiB", Absolute},
	{"events heap, end", "MiB", Absolute},
	{"events index, half", "MiB", Absolute},
	{"events index, end", "MiB", Absolute},
	{growthColumn, "%", Shape},
	{"most dead batches", "tuples", Absolute},
	{"free space of batches", "%", Shape},
	{"autovacuums of batches", "", Absolute},
	{"autovacuums of events", "", Absolute},
	{"batches leaf density", "%", Shape},
	{"batches leaf fragmentation", "%", Shape},
	{"events leaf density", "%", Shape},
	{"events leaf fragmentation", "%", Shape},
	{"batches index by rebuilt", "ratio", Shape},
	{"events index by rebuilt", "ratio", Shape},
	{doublesColumn("batches"), "h", Absolute},
	{doublesColumn("events"), "h", Absolute},
	{"REINDEX of batches", "s", Absolute},
	{"REINDEX of events", "s", Absolute},
	{"xids", "1/s", Absolute},
	{"newest survey", "ms", Absolute},
}

// summarise makes the values of a row of a run's points and of its first phase.
func summarise(points []TimelinePoint, pending int, began phase) map[string]float64 {
	v := map[string]float64{"events": began.rate}
	if began.cpu > 0 {
		v["CPU of Postgres"] = began.cpu
	}
	if len(points) < 3 {
		return v
	}
	first, half, last := points[0], points[len(points)/2], points[len(points)-1]
	if pending > 0 {
		v["turnovers"] = last.Values["settled"] / float64(pending)
	}
	if updates := last.Values["batches updates"] - first.Values["batches updates"]; updates > 0 {
		v[hotColumn] = 100 * (last.Values["batches HOT updates"] - first.Values["batches HOT updates"]) / updates
	}
	for _, what := range []string{"batches heap", "batches index", "events heap", "events index"} {
		v[what+", half"], v[what+", end"] = half.Values[what], last.Values[what]
	}
	v["heads heap, end"], v["heads index, end"] = last.Values["heads heap"], last.Values["heads index"]
	v[growthColumn] = 100 * growth(points, "batches heap", "batches index", "events heap", "events index")
	for _, p := range points {
		v["most dead batches"] = max(v["most dead batches"], p.Values["batches dead tuples"])
	}
	for _, t := range []string{"batches", "events"} {
		v["autovacuums of "+t] = last.Values[t+" autovacuums"] - first.Values[t+" autovacuums"]
		for _, of := range []string{" leaf density", " leaf fragmentation"} {
			if newest, known := newestValue(points, t+of); known {
				v[t+of] = newest
			}
		}
	}
	if passed := last.Seconds - first.Seconds; passed > 0 {
		v["xids"] = (last.Values["xids"] - first.Values["xids"]) / passed
	}
	v["newest survey"] = last.Values["survey"]
	return v
}

// newestValue is the last of a column that is known.
func newestValue(points []TimelinePoint, column string) (value float64, known bool) {
	for _, p := range points {
		if v, here := p.Values[column]; here {
			value, known = v, true
		}
	}
	return value, known
}

const (
	// A size is level when its peak grows by no more than this from the middle third of a part to
	// the last, in percent.
	levelGrowth = 5
	// It can only be told when autovacuum has run so often, and all that waits was replaced so often.
	levelVacuums, levelTurnovers = 5, 3
)

// settledDown reports whether a part was long enough for its sizes to be level, if they ever are.
func settledDown(row TableRow) bool {
	return row.Values["turnovers"] >= levelTurnovers && row.Values["autovacuums of batches"] >= levelVacuums &&
		row.Values["autovacuums of events"] >= levelVacuums
}

// growth is how much more the peak of a sum of columns is in the last third than in the middle one, in
// relation to that: sizes go up and down from one vacuum to the next.
func growth(points []TimelinePoint, columns ...string) float64 {
	peak := func(points []TimelinePoint) (most float64) {
		for _, p := range points {
			sum := 0.0
			for _, c := range columns {
				sum += p.Values[c]
			}
			most = max(most, sum)
		}
		return most
	}
	third := len(points) / 3
	return peak(points[len(points)-third:])/peak(points[third:len(points)-third]) - 1
}

// doubles is how long it takes until an index is twice what it is, at the pace at which its peak grows;
// 0: it is level.
func doubles(points []TimelinePoint, table string) time.Duration {
	grew := growth(points, table+" index")
	if 100*grew <= levelGrowth {
		return 0
	}
	third := (points[len(points)-1].Seconds - points[0].Seconds) / 3
	return time.Duration(third / grew * float64(time.Second))
}

// result is what the run found, with its indexes built anew at the end.
func (r *storeRun) result(ctx context.Context, phases []phase) (storeResult, error) {
	points := r.timeline.of(r.part.name)
	out := storeResult{
		values: summarise(points, int(r.fillEvents), phases[0]), phases: phases, stayed: r.churn.sleeping.Load(), retries: r.churn.failures.Load(),
	}
	if free, known, err := r.probe.freeSpace(ctx, "batches"); err != nil {
		return out, err
	} else if known {
		out.values["free space of batches"] = free
	}
	return out, r.rebuild(ctx, out.values, points)
}

// rebuild builds the indexes anew, and adds what that says to the values, with the pace at which they
// grew: one that is level takes for ever to double, which is +Inf.
func (r *storeRun) rebuild(ctx context.Context, values map[string]float64, points []TimelinePoint) error {
	for _, table := range []string{"batches", "events"} {
		before, after, took, err := r.probe.reindex(ctx, table)
		if err != nil {
			return err
		}
		values[table+" index by rebuilt"] = float64(before) / float64(max(after, 1))
		values["REINDEX of "+table] = took.Seconds()
		values[doublesColumn(table)] = math.Inf(1)
		if left := doubles(points, table); left > 0 {
			values[doublesColumn(table)] = left.Hours()
		}
	}
	return nil
}
