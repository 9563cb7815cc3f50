package bench

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"time"
)

// newFakeStore is a measurement whose turns a test makes up.
func newFakeStore() *storeMeasure {
	b := &Bench{config: Config{Say: func(string) {}}, report: newReport(Scenario{Name: "store"}, Config{})}
	return &storeMeasure{bench: b, length: time.Second, table: b.table(Table{Name: "store", Columns: storeColumns}), timeline: newStoreTimeline()}
}

func mustFigures(t *testing.T, m *storeMeasure, want map[string]float64) {
	t.Helper()
	got := map[string]float64{}
	for _, f := range m.bench.report.allFigures() {
		got[f.Name] = f.Value
	}
	for name, value := range want {
		if v, known := got[name]; !known || math.Abs(v-value) > 1e-9 {
			t.Errorf("%s is %v, known: %v; want %v", name, v, known, value)
		}
	}
}

// TestPartsAreMeasuredInTurn: those of a group that compares, every other time in reverse; sizes once.
func TestPartsAreMeasuredInTurn(t *testing.T) {
	parts := []storePart{
		{group: sizesGroup, name: "few"},
		{group: sizesGroup, name: "many"},
		{group: "fillfactor", name: "50"},
		{group: "fillfactor", name: "80"},
		{group: "fillfactor", name: "100"},
		{group: "held", name: "held"},
	}
	for runs, want := range map[int]string{
		1: "few; many; 50; 80; 100; held; ",
		3: "few; many; 50, run 1; 80, run 1; 100, run 1; 100, run 2; 80, run 2; 50, run 2; 50, run 3; 80, run 3; 100, run 3; held, run 1; held, run 2; held, run 3; ",
	} {
		m, order := newFakeStore(), ""
		err := m.measure(t.Context(), storeGroups(parts, runs), func(_ context.Context, turn storeTurn) (storeResult, error) {
			order += turn.name() + "; "
			return storeResult{values: map[string]float64{"events": 1}}, nil
		})
		if err != nil || order != want {
			t.Errorf("%d runs: %v, in the order %s; want %s", runs, err, order, want)
		}
		rows := ""
		for _, row := range m.table.Rows {
			rows += row.Name + "; "
		}
		if want := "few; many; 50; 80; 100; held; "; rows != want {
			t.Errorf("%d runs: rows %s; want %s", runs, rows, want)
		}
	}
}

// TestRunsHaveMedians: each figure has its own, and those of a held-open transaction are of the same run.
func TestRunsHaveMedians(t *testing.T) {
	runs := []storeResult{
		{values: map[string]float64{"events": 10, "CPU of Postgres": 7, "batches heap, end": 3, "free space of batches": 1}, stayed: 5},
		{values: map[string]float64{"events": 30, "CPU of Postgres": 9, "batches heap, end": 1}, stayed: 50, retries: 2},
		{values: map[string]float64{"events": 20, "CPU of Postgres": 1, "batches heap, end": 2}, stayed: 6, retries: 1},
	}
	// Of phases that have a median each, the ratio of the medians would be another one.
	for i, phases := range [][]phase{
		{{100, 10}, {90, 20}, {70, 5}},
		{{200, 20}, {100, 30}, {80, 6}},
		{{50, 30}, {40, 90}, {90, 7}},
	} {
		runs[i].phases = phases
	}
	m := newFakeStore()
	part := storePart{group: "held-open transaction", name: "part", held: true, sleepers: 0.1}
	err := m.measure(t.Context(), storeGroups([]storePart{part}, len(runs)), func(_ context.Context, turn storeTurn) (storeResult, error) {
		return runs[turn.run], nil
	})
	if err != nil {
		t.Fatal(err)
	}
	mustFigures(t, m, map[string]float64{
		"part: runs": 3, "part: events": 20, "part: events, lowest": 10, "part: events, highest": 30,
		"part: CPU of Postgres": 7, "part: CPU of Postgres, lowest": 1, "part: CPU of Postgres, highest": 9, "part: batches heap, end": 2,
		"part: batches that stayed": 6, "part: batches that stayed, highest": 50,
		"held-open transaction: before": 100, "held-open transaction: meanwhile, 1s": 90, "held-open transaction: after": 80,
		"held-open transaction: after, lowest": 70, "held-open transaction: CPU of Postgres, meanwhile, 1s": 30,
		"held-open transaction: CPU of Postgres an event, meanwhile by before": 2,
	})
	row := m.table.Rows[0]
	if _, known := row.Values["free space of batches"]; known {
		t.Error("what one run of three knows is given as a median")
	}
	if !strings.HasPrefix(row.Remark, "3 transactions were tried again; ") {
		t.Errorf("remark %q", row.Remark)
	}
	if len(m.lost) != 1 || math.Abs(m.lost[0]-20) > 1e-9 {
		t.Errorf("lost %v; want the median of 10, 50 and 20 %%", m.lost)
	}
}

// TestWhatWasMeasuredIsReported: also when a later turn fails.
func TestWhatWasMeasuredIsReported(t *testing.T) {
	m, broken := newFakeStore(), errors.New("broken")
	parts := []storePart{{group: "autovacuum", name: "one"}, {group: "autovacuum", name: "two"}, {group: "sleepers", name: "three"}}
	err := m.measure(t.Context(), storeGroups(parts, 5), func(_ context.Context, turn storeTurn) (storeResult, error) {
		if turn.run == 2 && turn.part.name == "two" {
			return storeResult{}, broken
		}
		return storeResult{values: map[string]float64{"events": float64(turn.run)}}, nil
	})
	if !errors.Is(err, broken) || !strings.Contains(err.Error(), "two, run 3") {
		t.Errorf("%v; want that run 3 of two is broken", err)
	}
	if len(m.table.Rows) != 2 {
		t.Fatalf("rows %v; want one and two", m.table.Rows)
	}
	mustFigures(t, m, map[string]float64{"one: runs": 3, "one: events": 1, "two: runs": 2, "two: events": 0.5})
}

// TestLevelsOfSeveralRuns: an index doubles if it does in most of them.
func TestLevelsOfSeveralRuns(t *testing.T) {
	level := math.Inf(1)
	for name, test := range map[string]struct {
		hours     []float64
		turnovers float64
		want      float64 // 0: there is no figure
		remark    string
	}{
		"doubles":   {[]float64{level, 2, 4}, 9, 4, "the index of batches doubles in 4h0m0s; the index of events is level: no REINDEX"},
		"level":     {[]float64{level, 2, level}, 9, 0, "the index of batches is level: no REINDEX; the index of events is level: no REINDEX"},
		"too short": {[]float64{1, 2, 3}, 1, 0, "too short to tell of levels"},
	} {
		var results []storeResult
		for _, hours := range test.hours {
			results = append(results, storeResult{values: map[string]float64{
				"turnovers": test.turnovers, "autovacuums of batches": 9, "autovacuums of events": 9,
				doublesColumn("batches"): hours, doublesColumn("events"): level,
			}})
		}
		row := storeRow("part", results)
		if row.Values[doublesColumn("batches")] != test.want || row.Remark != test.remark {
			t.Errorf("%s: %v h, %q; want %v h, %q", name, row.Values[doublesColumn("batches")], row.Remark, test.want, test.remark)
		}
		for column, v := range row.Values {
			if math.IsInf(v, 0) {
				t.Errorf("%s: %s is %v, which no JSON can hold", name, column, v)
			}
		}
	}
}
