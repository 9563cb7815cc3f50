package bench

import (
	"context"
	"fmt"
	"time"
)

// Of scenario heads, unless they are set otherwise.
const (
	headWriters = 16
	headsSpread = 10_000 // keys that the same load is spread over
	headsBatch  = 100    // events of a flush that is not a lone event's
)

// headsLoads are what the writers do: all of them move one head, which one of them does alone
// before, and then many heads. First with lone events, then with batches.
func headsLoads(s Settings) []Load {
	writers, keys := headWriters, headsSpread
	set(&writers, s.Callers)
	set(&keys, s.Keys)
	var out []Load
	for _, events := range []int{1, headsBatch} {
		for _, part := range []struct{ writers, keys int }{{1, 1}, {writers, 1}, {writers, keys}} {
			load := Load{
				Name:  fmt.Sprintf("writers %d, heads %d, flushes of %d", part.writers, part.keys, events),
				Bytes: 256, Events: events, Keys: part.keys, Callers: part.writers, WarmUp: time.Second, For: 5 * time.Second,
			}
			set(&load.Bytes, s.Bytes)
			set(&load.WarmUp, s.WarmUp)
			set(&load.For, s.For)
			out = append(out, load)
		}
	}
	return out
}

// runHeads lets writers race for the head of one key, then for those of many.
func runHeads(ctx context.Context, b *Bench) error {
	table := b.table(Table{
		Name: "heads", Title: "Heads",
		Note: "Closed loop; figures are medians of the runs, and what went wrong is of all of them. Each writer is a store of its own, which appends one flush after another, as ingests do; " +
			"\"writers waiting\" is how many wait for a lock that another has, on average.",
		Columns: []Column{
			{"writers", "", Shape},
			{"keys", "", Shape},
			{"events of a flush", "", Shape},
			{"flushes", "1/s", Absolute},
			{"events", "events/s", Absolute},
			{"events, lowest", "events/s", Absolute},
			{"events, highest", "events/s", Absolute},
			{"p50", "ms", Absolute},
			{"p99", "ms", Absolute},
			{"max", "ms", Absolute},
			{"writers waiting", "", Shape},
			{"failed flushes", "", Shape},
			{"deadlocks", "", Shape},
		},
	})
	loads, runs := headsLoads(b.config.Settings), b.config.Settings.runs()
	results := map[string][]map[string]float64{} // by load
	err := b.withPostgres(ctx, nil, func(d *database) error {
		// Autovacuum goes round all databases: those of earlier turns would take time from later ones.
		d.kept = 0
		return compare(runs, loads, func(load Load, run int) error {
			name := ofRun(load.Name, run, runs)
			err := d.with(ctx, "heads", func(url string) error {
				values, err := b.race(ctx, name, load, url)
				results[load.Name] = append(results[load.Name], values)
				return err
			})
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	for _, load := range loads {
		b.add(table, headsRow(load.Name, results[load.Name]))
	}
	for i := 0; i < len(loads); i += 3 {
		alone, one, many := results[loads[i].Name], results[loads[i+1].Name], results[loads[i+2].Name]
		what := fmt.Sprintf("flushes of %d: ", loads[i].Events)
		b.overRuns(Shape, what+fmt.Sprintf("%d writers on one head by one writer", loads[i+1].Callers), ratiosOf(one, alone, "events"), "ratio")
		b.overRuns(Shape, what+fmt.Sprintf("%d heads by one head", loads[i+2].Keys), ratiosOf(many, one, "events"), "ratio")
	}
	return nil
}

// headsRow is what the runs of a load have in common, with all that went wrong in any.
func headsRow(name string, runs []map[string]float64) TableRow {
	row := TableRow{Name: name, Values: medianValues(runs, "events")}
	for _, wrong := range []string{"failed flushes", "deadlocks"} {
		row.Values[wrong] = 0
		for _, values := range runs {
			row.Values[wrong] += values[wrong]
		}
	}
	return row
}

// race runs one load and judges what it left behind.
func (b *Bench) race(ctx context.Context, name string, load Load, url string) (map[string]float64, error) {
	b.live(name)
	r, err := newHeadRace(load, url)
	if err != nil {
		return nil, err
	}
	if err := r.run(ctx); err != nil {
		return nil, err
	}
	conn, err := connectTo(ctx, url)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(ctx) }() // it only reads
	v, err := judgeHeads(ctx, conn, name, r.ledger)
	if err != nil {
		return nil, err
	}
	b.report.Correctness = append(b.report.Correctness, v)
	b.config.Say("correctness: " + v.String())
	return r.values(), nil
}
