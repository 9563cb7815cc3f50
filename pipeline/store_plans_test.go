package pipeline

import (
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// A plan that was made while the tables were empty, and is kept, must still look rows up by
// their keys when a million wait: a queue's tables are empty most of the time.
func TestPlansOfEmptyTables(t *testing.T) {
	s := mustStore(t)
	conn, err := s.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	for _, sql := range []string{`ANALYZE waybill.batches`, `ANALYZE waybill.events`, `ANALYZE waybill.dead_letters`, `SET plan_cache_mode = force_generic_plan`} {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	for name, statement := range map[string]struct{ sql, types, args string }{
		"read_events":    {readEventsSQL, "bigint[], bigint[]", "'{1}', '{2}'"},
		"delete_events":  {deleteEventsSQL, "bigint[], bigint[]", "'{1}', '{2}'"},
		"delete_batches": {deleteBatchesSQL, "bigint[]", "'{1}'"},
		"claim_stale":    {claimStaleSQL, "bigint[], text[], timestamptz[], bigint", "'{1}', '{a}', '{now}', 1"},
		"settle_lock":    {settleLockSQL, "bigint[]", "'{1}'"},
		"settle_waiting": {settleWaitingSQL, "bigint[], text[]", "'{1}', '{a}'"},
		"settle_refused": {settleRefusedSQL, "bigint[], text[], text[], text[]", "'{1}', '{a}', '{c}', '{r}'"},
		"expire":         {expireSQL, "integer, bigint", "1, 2"},
		"settle_late":    {settleLateSQL, "bigint[], bigint[], text[], text[]", "'{1}', '{2}', '{a}', '{\"{}\"}'"},
		"requeued":       {settleRequeuedSQL, "bigint[], bigint[], text[]", "'{1}', '{2}', '{a}'"},
		"late_requeued":  {settleLateRequeuedSQL, "bigint[], bigint[], text[], text[]", "'{1}', '{2}', '{a}', '{\"{}\"}'"},
	} {
		if _, err := conn.Exec(t.Context(), fmt.Sprintf("PREPARE %s (%s) AS %s", name, statement.types, statement.sql)); err != nil {
			t.Fatal(name, err)
		}
		rows, err := conn.Query(t.Context(), fmt.Sprintf("EXPLAIN EXECUTE %s (%s)", name, statement.args), pgx.QueryExecModeSimpleProtocol)
		if err != nil {
			t.Fatal(name, err)
		}
		plan, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(name, err)
		}
		mustLookUp(t, name, plan)
	}
}

// mustLookUp wants each look into the large tables to be by a key, but for those that a LIMIT
// ends.
func mustLookUp(t *testing.T, name string, plan []string) {
	t.Helper()
	for i, line := range plan {
		large := strings.Contains(line, " on batches") || strings.Contains(line, " on events") || strings.Contains(line, " on dead_letters")
		if !large || !strings.Contains(line, "Scan") {
			continue
		}
		limited := i > 0 && strings.Contains(plan[i-1], "Limit")
		keyed := i+1 < len(plan) && (strings.Contains(plan[i+1], "Index Cond") || strings.Contains(plan[i+1], "TID Cond"))
		if !keyed && !limited {
			t.Errorf("%s walks over a whole table:\n%s", name, strings.Join(plan, "\n"))
		}
	}
}
