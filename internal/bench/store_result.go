package bench

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// Columns that target 10 goes by.
const (
	hotColumn    = "HOT updates of batches"
	growthColumn = "growth of the peak"
)

// storeColumns are the figures of a part.
var storeColumns = []Column{
	{"events", "events/s", Absolute},
	{"CPU of Postgres", "µs/event", Absolute},
	{"turnovers", "", Shape},
	{hotColumn, "%", Shape},
	{"HOT updates of key_heads", "%", Shape},
	{"batches heap, half", "MiB", Absolute},
	{"batches heap, end", "MiB", Absolute},
	{"batches index, half", "MiB", Absolute},
	{"batches index, end", "MiB", Absolute},
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
	{"index of batches doubles", "h", Absolute},
	{"index of events doubles", "h", Absolute},
	{"REINDEX of batches", "s", Absolute},
	{"REINDEX of events", "s", Absolute},
	{"xids", "1/s", Absolute},
	{"newest survey", "ms", Absolute},
}

// summarise makes a row of a part's points and of its first phase.
func summarise(name string, points []TimelinePoint, pending int, began phase) TableRow {
	row := TableRow{Name: name, Values: map[string]float64{"events": began.rate}}
	if began.cpu > 0 {
		row.Values["CPU of Postgres"] = began.cpu
	}
	if len(points) < 3 {
		return row
	}
	first, half, last := points[0], points[len(points)/2], points[len(points)-1]
	v := row.Values
	if pending > 0 {
		v["turnovers"] = last.Values["settled"] / float64(pending)
	}
	for _, t := range []string{"batches", "key_heads"} {
		if updates := last.Values[t+" updates"] - first.Values[t+" updates"]; updates > 0 {
			v["HOT updates of "+t] = 100 * (last.Values[t+" HOT updates"] - first.Values[t+" HOT updates"]) / updates
		}
	}
	for _, what := range []string{"batches heap", "batches index", "events heap", "events index"} {
		v[what+", half"], v[what+", end"] = half.Values[what], last.Values[what]
	}
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
	return row
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

// rebuild builds the indexes anew, adds to a row what that says, and how often it would be needed: an
// index that is level needs none, however much of it is free.
func (r *storeRun) rebuild(ctx context.Context, row *TableRow, points []TimelinePoint) error {
	remarks := nonEmpty(row.Remark)
	for _, table := range []string{"batches", "events"} {
		before, after, took, err := r.probe.reindex(ctx, table)
		if err != nil {
			return err
		}
		row.Values[table+" index by rebuilt"] = float64(before) / float64(max(after, 1))
		row.Values["REINDEX of "+table] = took.Seconds()
		switch left := doubles(points, table); {
		case !settledDown(*row):
		case left == 0:
			remarks = append(remarks, "the index of "+table+" is level: no REINDEX")
		default:
			row.Values["index of "+table+" doubles"] = left.Hours()
			remarks = append(remarks, fmt.Sprintf("the index of %s doubles in %v", table, left.Round(time.Second)))
		}
	}
	if !settledDown(*row) {
		remarks = append(remarks, "too short to tell of levels")
	}
	row.Remark = strings.Join(remarks, "; ")
	return nil
}
