package bench

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/waybillhq/waybill/internal/pgtest"
	"github.com/waybillhq/waybill/pipeline"
)

// TestEachStatementIsMeasured: one that is new needs a case, or a reason for having none.
func TestEachStatementIsMeasured(t *testing.T) {
	files, err := os.ReadDir("../../pipeline/sql")
	if err != nil {
		t.Fatal(err)
	}
	statements, err := pipeline.Statements()
	if err != nil {
		t.Fatal(err)
	}
	measured := map[string]bool{}
	for _, c := range statementCases {
		measured[c.file] = true
		if _, known := statements[c.file]; !known {
			t.Errorf("there is no statement %s", c.file)
		}
		if name := c.prepared(); len(name)-2 > 63 {
			t.Errorf("%s is too long for a name", name)
		}
	}
	for _, file := range files {
		name := strings.TrimSuffix(file.Name(), ".sql")
		why, reason := statementsNotMeasured[name]
		if measured[name] == reason || reason && why == "" {
			t.Errorf("%s: measured %v, and the reason for not measuring it is %q", name, measured[name], why)
		}
	}
}

// TestStatementCasesDoWhatTheySay: on filled tables each of them finds what it is to find.
func TestStatementCasesDoWhatTheySay(t *testing.T) {
	const rows = 2000
	url := pgtest.New(t)
	admin := mustConnect(t, url)
	for _, sql := range statementRows {
		mustRun(t, admin, withRows(sql, rows))
	}
	mustRun(t, admin, "VACUUM (ANALYZE)")
	want := map[string]int64{ // rows that the topmost nodes have, or that they write
		"append": 17, "append_events": 17, "append_one_key": 2, "append_log": 2, "claim_stale": 100, "delete_batches": 100,
		"delete_events": 100, "settle_late": 50, "settle_late_requeued": 10, "settle_lock": 100, "settle_refused": 100,
		"settle_requeued": 20, "settle_waiting": 100, "split_damaged": 2, "split_sound": 1, "unlink_requeued": 20,
		"purge_letters": 100, "read_events": 100, "read_letters": 100, "requeue": 100, "dedupe_read": 10, "dedupe_read_in_progress": 10,
	}
	for _, ingest := range []bool{true, false} {
		s, err := openStatementSession(t.Context(), url, ingest)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.conn.Close(t.Context()) })
		for _, c := range statementCases {
			if c.ingest != ingest {
				continue
			}
			if err := s.prepare(t.Context(), c, rows); err != nil {
				t.Fatal(err)
			}
			r, err := s.measure(t.Context(), c, rows, time.Nanosecond)
			if err != nil {
				t.Fatal(err)
			}
			if len(r.took) != leastExecutions || r.took[0] <= 0 || r.took[0] > r.took[4] || len(r.buffers) != leastExecutions {
				t.Errorf("%s: %+v", c.file, r)
			}
			if ingest && !strings.HasPrefix(r.plan, "kept: ") {
				t.Errorf("%s: an ingest makes a plan anew: %s", c.file, r.plan)
			}
			least, known := want[c.file]
			if n := mustAffect(t, s, c, rows); known && n != least {
				t.Errorf("%s (%s) affects %d rows; want %d", c.file, c.what, n, least)
			}
		}
	}
}

// mustAffect executes a case and returns how many rows it wrote or returned.
func mustAffect(t *testing.T, s *statementSession, c statementCase, rows int) int64 {
	t.Helper()
	tx, err := s.conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(t.Context()) }()
	args, err := literals(t.Context(), tx, withRows(c.args, rows))
	if err != nil {
		t.Fatal(err)
	}
	tag, err := tx.Exec(t.Context(), "EXECUTE "+c.prepared()+args)
	if err != nil {
		t.Fatalf("%s: %v", c.file, err)
	}
	return tag.RowsAffected()
}

// TestStatementIsGivenUp after the store's own limit, and the report says so.
func TestStatementIsGivenUp(t *testing.T) {
	s, err := openStatementSession(t.Context(), pgtest.New(t), false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.conn.Close(t.Context()) })
	s.texts["slow"], s.limit = `SELECT pg_sleep($1)`, 20*time.Millisecond
	c := statementCase{file: "slow", local: `SET LOCAL statement_timeout = 20`, args: `SELECT 60`}
	if err := s.prepare(t.Context(), c, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := s.explain(t.Context(), c, 1, "ANALYZE,"); !errors.Is(err, errGivenUp) {
		t.Errorf("%v; want that it is given up", err)
	}
	r, err := s.measure(t.Context(), c, 1, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	fast := statementResult{took: []float64{1, 2, 3}, plan: r.plan}
	row := statementResultRow("slow", []statementResult{r, fast, fast})
	if !strings.HasPrefix(row.Remark, "GIVEN UP in 1 of 3 runs") || row.Values["p50"] != 2 || row.Values["executions"] != 3 || strings.Contains(row.Remark, "; or ") {
		t.Errorf("%+v", row)
	}
}

// TestBuffersOfWritingParts: a part of a statement that nobody reads from is counted too, and one
// that somebody reads from only once.
func TestBuffersOfWritingParts(t *testing.T) {
	e, err := parseExplained([]byte(`[{"Execution Time": 1.5, "Plan": {"Node Type": "Append", "Shared Hit Blocks": 10, "Shared Read Blocks": 2, "Plans": [
		{"Node Type": "ModifyTable", "Subplan Name": "CTE read", "Shared Hit Blocks": 7, "Shared Read Blocks": 1},
		{"Node Type": "ModifyTable", "Subplan Name": "CTE unread", "Relation Name": "events", "Shared Hit Blocks": 20, "Shared Read Blocks": 3, "Plans": [
			{"Node Type": "Index Scan", "Relation Name": "events", "Index Name": "events_pkey", "Shared Hit Blocks": 4, "Shared Read Blocks": 0}]},
		{"Node Type": "CTE Scan", "CTE Name": "read", "Shared Hit Blocks": 7, "Shared Read Blocks": 1},
		{"Node Type": "Index Scan", "Index Name": "events_pkey"}, {"Node Type": "Seq Scan", "Relation Name": "sinks"}]}}]`))
	if err != nil {
		t.Fatal(err)
	}
	if n := e.buffers(); n != 35 || e.Took != 1.5 {
		t.Errorf("%d buffers in %v ms; want 35 in 1.5", n, e.Took)
	}
	if kind := e.kind(); kind != "Index Scan events_pkey, Seq Scan sinks" {
		t.Errorf("the plan is %q", kind)
	}
	if _, err := parseExplained([]byte(`[]`)); err == nil {
		t.Error("nothing was explained, and nobody says so")
	}
}

func TestPercentile(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(i + 1)
	}
	for percent, want := range map[int]float64{1: 1, 50: 50, 99: 99, 100: 100} {
		if got := percentile(hundred, percent); got != want {
			t.Errorf("p%d is %v; want %v", percent, got, want)
		}
	}
	if got := percentile([]float64{3, 5}, 99); got != 5 {
		t.Errorf("p99 of two is %v; want the larger", got)
	}
}
