package bench

import (
	"bytes"
	"cmp"
	"context"
	"encoding/csv"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/waybillhq/waybill/internal/pgtest"
	"github.com/waybillhq/waybill/pipeline"
)

// mustMeasureStore measures parts for a moment each, so many times where they are compared, and returns
// the report.
func mustMeasureStore(t *testing.T, length time.Duration, runs int, parts ...storePart) *storeMeasure {
	t.Helper()
	b := &Bench{config: Config{Say: func(string) {}}, report: newReport(Scenario{Name: "store"}, Config{})}
	m := &storeMeasure{bench: b, length: length, table: b.table(Table{Name: "store", Columns: storeColumns})}
	m.timeline = newStoreTimeline()
	used := time.Duration(0)
	m.cpu = func() (time.Duration, error) { used += time.Second; return used, nil }
	b.report.Timelines = append(b.report.Timelines, m.timeline)
	err := m.measure(t.Context(), storeGroups(parts, runs), func(ctx context.Context, turn storeTurn) (storeResult, error) {
		return m.turn(ctx, pgtest.New(t), turn)
	})
	if err != nil {
		t.Fatal(err)
	}
	m.judge()
	return m
}

// TestStoreIsMeasured: with each kind of part, nothing is lost, and every column has its figures.
func TestStoreIsMeasured(t *testing.T) {
	parts := []storePart{
		{group: "pending", name: "few", pending: 600, weight: 1, batches: "fillfactor = 50", options: "autovacuum_vacuum_scale_factor = 0.5"},
		{group: "sleepers", name: "sleepers", pending: 600, weight: 1, sleepers: 0.1},
		{group: "held-open transaction", name: "held", pending: 600, weight: 1, held: true},
	}
	m := mustMeasureStore(t, 800*time.Millisecond, 2, parts...)
	r := m.bench.report
	if len(r.Correctness) != 5 || len(m.table.Rows) != 3 || len(r.Targets) != 3 {
		t.Fatalf("%d verdicts, %d rows, %d targets", len(r.Correctness), len(m.table.Rows), len(r.Targets))
	}
	systems := ""
	for _, v := range r.Correctness {
		systems += v.System + "; "
		if !v.OK() || v.Accepted < 1000 || v.Pending < 600 || v.Delivered == 0 {
			t.Errorf("%v", v)
		}
	}
	if want := "few; sleepers, run 1; sleepers, run 2; held, run 1; held, run 2; "; systems != want {
		t.Errorf("what was judged is %s; want %s", systems, want)
	}
	for i, row := range m.table.Rows {
		if want := []float64{1, 2, 2}[i]; row.Values["runs"] != want {
			t.Errorf("%s: %v runs; want %v", row.Name, row.Values["runs"], want)
		}
		for _, column := range []string{
			"events", "CPU of Postgres", "turnovers", "HOT updates of batches", "heads heap, end", "batches heap, end", "events index, half", "xids",
			"batches leaf density", "events leaf density", "batches index by rebuilt", "REINDEX of events",
		} {
			if row.Values[column] <= 0 && (r.Missing == nil || !strings.Contains(column, "leaf")) {
				t.Errorf("%s: %s is %v", row.Name, column, row.Values[column])
			}
		}
		if !strings.Contains(row.Remark, "too short to tell of levels") {
			t.Errorf("%s: %s", row.Name, row.Remark)
		}
		points := m.timeline.of(row.Name)
		if !slices.IsSortedFunc(points, func(a, b TimelinePoint) int { return cmp.Compare(a.Seconds, b.Seconds) }) {
			t.Errorf("%s: its time goes back: more than one run is in its chart", row.Name)
		}
		// One look alone may fall into a moment in which the machine stood still.
		before := points[:len(points)-1]
		if _, known := points[len(points)-1].Values["events"]; known || !slices.ContainsFunc(before, func(p TimelinePoint) bool { return p.Values["events"] > 0 }) {
			t.Errorf("%s: the last look, when all is over, has a rate, or none before has one", row.Name)
		}
		if first, last := points[0], points[len(points)-1]; len(points) < 4 || last.Seconds < 0.8 || last.Values["batches updates"] <= first.Values["batches updates"] {
			t.Errorf("%s: %d points, the last at %v s", row.Name, len(points), points[len(points)-1].Seconds)
		}
	}
	if hot := m.table.Rows[0].Values["HOT updates of batches"]; hot < 95 {
		t.Errorf("with half of each page free %.1f %% of the updates are HOT", hot)
	}
	figures := map[string]float64{}
	for _, f := range r.Figures {
		figures[f.Name] = f.Value
	}
	if figures["sleepers: batches that stayed"] == 0 || figures["held-open transaction: before"] <= 0 || figures["held-open transaction: after"] <= 0 {
		t.Errorf("%v", figures)
	}
	if ratio := figures["held-open transaction: CPU of Postgres an event, meanwhile by before"]; ratio <= 0 || ratio == 1 {
		t.Errorf("meanwhile an event takes %v times the CPU", ratio)
	}
	if hot, plateau, held := r.Targets[0], r.Targets[1], r.Targets[2]; hot.Value != m.table.Rows[0].Values["HOT updates of batches"] || plateau.Error == "" || held.Error != "" {
		t.Errorf("%v", r.Targets)
	}
	r.finish(nil)
	file := mustWrite(t, r)
	rows, err := csv.NewReader(bytes.NewReader(file("store_series.csv"))).ReadAll()
	if err != nil || len(rows) != 1+len(m.timeline.Points) {
		t.Errorf("store_series.csv has %d rows of %d points: %v", len(rows), len(m.timeline.Points), err)
	}
	if page := string(file("report.html")); !strings.Contains(page, "sleepers: batches heap") || !strings.Contains(page, "<svg ") {
		t.Error("the page lacks a chart of a group")
	}
}

// TestChurnIsJudged: rows that vanish, and batches whose events do, are found.
func TestChurnIsJudged(t *testing.T) {
	url := pgtest.New(t)
	conn := mustConnect(t, url)
	part := storePart{pending: 60}
	r := &storeRun{part: part}
	if err := r.prepare(t.Context(), conn, churnLoad{events: 32, keys: 10, bytes: 10}); err != nil {
		t.Fatal(err)
	}
	c, err := newChurn(t.Context(), url, r.load)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	for _, step := range []struct {
		sql                      string
		lost, doubled, misjudged bool
	}{
		{`SELECT`, false, false, false},
		{`WITH gone AS (DELETE FROM waybill.batches WHERE batch = 5) DELETE FROM waybill.events WHERE position >> 12 = 5`, true, false, true},
		{`DELETE FROM waybill.events WHERE position = 1 << 12`, true, false, true},
		{`INSERT INTO waybill.events SELECT 1 << 12 | i, source, type, event_id, seqnum, event FROM waybill.events, generate_series(10, 19) AS i WHERE position = 2 << 12`, false, true, true},
		{`DELETE FROM waybill.batches WHERE batch = 3`, false, true, true},
	} {
		mustRun(t, conn, step.sql)
		v, err := c.verdict(t.Context(), url, "churn", r.fillEvents)
		if err != nil {
			t.Fatal(err)
		}
		if v.Lost > 0 != step.lost || v.Doubled > 0 != step.doubled || v.Misjudged > 0 != step.misjudged || v.OK() == (step.lost || step.doubled || step.misjudged) {
			t.Errorf("after %s: %v", step.sql, v)
		}
	}
}

// TestSleepersStay: so many in a hundred never wait in the queue.
func TestSleepersStay(t *testing.T) {
	c := &churn{load: churnLoad{sleepers: 0.02}}
	for range 10 {
		c.admit(make([]pipeline.BatchID, 100))
	}
	if c.sleeping.Load() != 20 || len(c.queue) != 980 {
		t.Errorf("%d of 1000 stay, %d wait", c.sleeping.Load(), len(c.queue))
	}
}

// TestChurnKeepsItsRate: it does not append faster than it is to, and all of it.
func TestChurnKeepsItsRate(t *testing.T) {
	url := pgtest.New(t)
	r := &storeRun{part: storePart{pending: 60}}
	load := churnLoad{events: 10, keys: 10, bytes: 10, appenders: 2, rate: 500}
	if err := r.prepare(t.Context(), mustConnect(t, url), load); err != nil {
		t.Fatal(err)
	}
	c, err := newChurn(t.Context(), url, r.load)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	time.AfterFunc(time.Second, func() { close(c.stop) })
	if err := c.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := c.appended.Load(); n > 520 || n < 50 {
		t.Errorf("%d events in a second; want about 500", n)
	}
}

func TestStoreLoads(t *testing.T) {
	rate, callers, few := 5.0, 7, 3
	held, other := storePart{held: true}, storePart{}
	for i, test := range []struct {
		settings  Settings
		part      storePart
		rate      float64
		appenders int
	}{
		{Settings{}, other, churnRate, churnAppenders},
		{Settings{}, held, 0, churnAppenders},
		{Settings{Rate: &rate}, held, 5, churnAppenders},
		{Settings{Callers: &callers, Keys: &few}, other, 0, 7},
	} {
		load := storeLoad(test.settings, test.part)
		if load.rate != test.rate || load.appenders != test.appenders || (test.settings.Keys != nil) != (load.keys == 3) {
			t.Errorf("load %d: %+v", i, load)
		}
	}
}

func points(index ...float64) []TimelinePoint {
	var out []TimelinePoint
	for i, v := range index {
		out = append(out, TimelinePoint{Seconds: float64(i), Values: map[string]float64{
			"batches index": v, "batches heap": 2 * v, "events heap": 10, "events index": 1, "settled": 100 * float64(i),
			"batches updates": 200 * float64(i), "batches HOT updates": 150 * float64(i), "batches dead tuples": 7 - v, "xids": 5 * float64(i),
			"batches autovacuums": 3 + float64(i),
		}})
	}
	return out
}

func TestSummaryOfAPart(t *testing.T) {
	values := summarise(points(1, 2, 3, 4, 2), 50, phase{123, 9})
	for column, want := range map[string]float64{
		"events": 123, "CPU of Postgres": 9, "turnovers": 8, "HOT updates of batches": 75, "batches heap, half": 6, "batches heap, end": 4, "batches index, end": 2,
		"growth of the peak": -26.0869565217, "most dead batches": 6, "autovacuums of batches": 4, "xids": 5,
	} {
		if got := values[column]; got < want-1e-9 || got > want+1e-9 {
			t.Errorf("%s is %v; want %v", column, got, want)
		}
	}
	if _, known := values["batches leaf density"]; known {
		t.Error("there is a leaf density that nobody saw")
	}
}

func TestLevelsNeedTime(t *testing.T) {
	enough := func() TableRow {
		return TableRow{Values: map[string]float64{"turnovers": levelTurnovers, "autovacuums of batches": levelVacuums, "autovacuums of events": levelVacuums}}
	}
	if !settledDown(enough()) {
		t.Error("there was enough of everything")
	}
	for column := range enough().Values {
		row := enough()
		if row.Values[column]--; settledDown(row) {
			t.Errorf("%s: %v is not enough", column, row.Values[column])
		}
	}
}

// TestTarget10 is judged by the worst of the parts that tell of it, and only if there are any.
func TestTarget10(t *testing.T) {
	b := &Bench{config: Config{Say: func(string) {}}, report: newReport(Scenario{Name: "store"}, Config{})}
	m := &storeMeasure{bench: b}
	if m.judge(); len(b.report.Targets) != 0 {
		t.Errorf("nothing was measured, and is judged: %v", b.report.Targets)
	}
	long := func(hot, growth float64) TableRow {
		return TableRow{Values: map[string]float64{
			"turnovers": 9, "autovacuums of batches": 9, "autovacuums of events": 9, hotColumn: hot, growthColumn: growth,
		}}
	}
	m.noteSizes(long(99.5, -3))
	m.noteSizes(long(98, 7))
	m.noteSizes(TableRow{Values: map[string]float64{hotColumn: 100, growthColumn: 90}}) // too short for a level
	m.reportHeld([]storeResult{{phases: []phase{{1000, 10}, {950, 20}, {1000, 10}}}})
	m.judge()
	for i, want := range []TargetResult{{Value: 98}, {Value: 7}, {Value: 5, OK: true}} {
		if got := b.report.Targets[i]; got.Value < want.Value-1e-9 || got.Value > want.Value+1e-9 || got.OK != want.OK || got.Error != "" {
			t.Errorf("%v; want %v, ok %v", got, want.Value, want.OK)
		}
	}
}

func TestWhenAnIndexDoubles(t *testing.T) {
	for want, index := range map[time.Duration][]float64{
		0:               {1, 2, 10, 4, 5, 10.4, 9}, // level, but for what dies between two vacuums
		4 * time.Second: {1, 2, 4, 8, 3, 6, 12},
	} {
		if got := doubles(points(index...), "batches"); got != want {
			t.Errorf("%v doubles in %v; want %v", index, got, want)
		}
	}
}

func mustParts(t *testing.T, s Settings) []storePart {
	t.Helper()
	parts, err := storeParts(s)
	if err != nil {
		t.Fatal(err)
	}
	return parts
}

func TestPartsThatAreWanted(t *testing.T) {
	for text, want := range map[string]int{"held": 1, "fillfactor": 5, "pending: ": 3, "": 15} {
		if parts := mustParts(t, Settings{Part: &text}); len(parts) != want {
			t.Errorf("%q: %d parts; want %d", text, len(parts), want)
		}
	}
	text := "nothing like it"
	if _, err := storeParts(Settings{Part: &text}); err == nil || !strings.Contains(err.Error(), "--part") {
		t.Errorf("%v; want that no part has it", err)
	}
}

func TestPartsShareTheTime(t *testing.T) {
	n := 5000
	parts := mustParts(t, Settings{Pending: &n})
	length := partLength(17*time.Minute, parts)
	names, sum := map[string]bool{}, time.Duration(0)
	for _, p := range parts {
		if names[p.name] || p.pending != n || p.group == "" {
			t.Errorf("%+v", p)
		}
		names[p.name] = true
		times := 1
		if p.held {
			times = 3
		}
		sum += time.Duration(times) * length
	}
	if sum > 17*time.Minute || sum < 17*time.Minute-time.Second {
		t.Errorf("the parts take %v of 17 minutes", sum)
	}
	for length, want := range map[time.Duration]time.Duration{time.Second: time.Second, 35 * time.Second: 3 * time.Second, time.Hour: time.Minute} {
		if got := naptime(length); got != want {
			t.Errorf("in %v autovacuum pauses for %v; want %v", length, got, want)
		}
	}
}
