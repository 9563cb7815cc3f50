package pipeline

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// planCase is a statement as the store runs it, with the types and values of its parameters.
type planCase struct{ sql, types, args string }

// A plan that was made while the tables were empty, and is kept, must still look rows up by
// their keys when a million wait: a queue's tables are empty most of the time.
func TestPlansOfEmptyTables(t *testing.T) {
	s := mustStore(t)
	mustAppend(t, s, mustEvents(t, 1, 1)) // one page of heads is when a walk over all of them looks cheap
	mustExec(t, s.pool, `ANALYZE waybill.batches, waybill.events, waybill.dead_letters, waybill.keys, waybill.heads, waybill.outbox`)
	mustPlan(t, s, "force_generic_plan", map[string]planCase{
		"append_one_key": {appendOneKeySQL, "text, text, bigint, smallint, bigint, bigint, text[], bytea[]", "'s', 't', 1, 1, 1, 1, '{i}', '{e}'"},
		"read_events":    {readEventsSQL, "bigint[], bigint[]", "'{1}', '{2}'"},
		"delete_events":  {deleteEventsSQL, "bigint[], bigint[]", "'{1}', '{2}'"},
		"delete_batches": {deleteBatchesSQL, "bigint[]", "'{1}'"},
		"claim_stale":    {claimStaleSQL, "bigint[], text[], timestamptz[], bigint", "'{1}', '{a}', '{now}', 1"},
		"settle_lock":    {settleLockSQL, "bigint[]", "'{1}'"},
		"settle_waiting": {settleWaitingSQL, "bigint[], text[]", "'{1}', '{a}'"},
		"settle_refused": {settleRefusedSQL, "bigint[], text[], text[], text[]", "'{1}', '{a}', '{c}', '{r}'"},
		"expire":         {expireSQL, "integer, bigint", "1, 2"},
		"requeued":       {settleRequeuedSQL, "bigint[], bigint[], text[]", "'{1}', '{2}', '{a}'"},
		"unlink":         {unlinkRequeuedSQL, "bigint[]", "'{1}'"},
		"outbox_read": {
			outboxReadSQL, "bigint[], bigint[], bigint, bigint, smallint[], integer, bigint, bigint, bigint", "'{1}', '{2}', 3, 4, '{1}', 5, 6, 7, 8",
		},
		"late_requeued": {settleLateRequeuedSQL, "bigint[], bigint[], text[], text[]", "'{1}', '{2}', '{a}', '{\"{}\"}'"},
	})
}

// What is planned anew must look rows up by their keys in tables that have grown since they were
// last analysed.
func TestPlansOfGrownTables(t *testing.T) {
	s := mustStore(t)
	for _, table := range []string{"batches", "events", "dead_letters"} {
		mustExec(t, s.pool, `ALTER TABLE waybill.`+table+` SET (autovacuum_enabled = off)`)
	}
	mustExec(t, s.pool, `ANALYZE waybill.batches, waybill.events, waybill.dead_letters`)
	mustExec(t, s.pool, `INSERT INTO waybill.batches (batch, token, lane, events, bytes, waiting_for)
		SELECT i, i, 1, 1, 1, '{ingress}' FROM generate_series(1, 20000) i`)
	mustExec(t, s.pool, `INSERT INTO waybill.events (position, source, type, event_id, seqnum, event)
		SELECT i << 12, '/s', 't', 'id', i, 'e' FROM generate_series(1, 20000) i`)
	mustExec(t, s.pool, `INSERT INTO waybill.dead_letters (position, token, sink, code, reason, accepted_at, lane, source, type, event_id, seqnum, event)
		SELECT i << 12, i, 'ingress', 'expired', '', now(), 1, '/s', 't', 'id', i, 'e' FROM generate_series(1, 20000) i`)
	mustPlan(t, s, "force_custom_plan", map[string]planCase{
		"settle_late":   {settleLateSQL, "bigint[], bigint[], text[], text[]", "'{1,2}', '{1,2}', '{ingress,ingress}', '{\"{}\",\"{}\"}'"},
		"split_damaged": {splitDamagedSQL, "bigint, bigint[], text[]", "1, '{4096,4097}', '{r,r}'"},
		"read_letters":  {readLettersSQL, "bigint[], bigint[], text[], boolean", "'{4096,8192}', '{1,2}', '{ingress,ingress}', true"},
		"requeue": {
			requeueSQL, "timestamptz[], bigint[], bigint[], text[], smallint[], bigint",
			"'{now,now}', '{4096,8192}', '{1,2}', '{ingress,ingress}', '{1,1}', 1",
		},
		"purge_letters": {purgeLettersSQL, "timestamptz[], bigint[], bigint[], text[]", "'{now,now}', '{4096,8192}', '{1,2}', '{ingress,ingress}'"},
		"purge_old":     {purgeDeadLettersSQL, "bigint, integer", "1, 5000"},
	})
}

// mustPlan wants each statement's plan to look rows up by their keys.
func mustPlan(t *testing.T, s *Store, mode string, statements map[string]planCase) {
	t.Helper()
	conn, err := s.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	mustExec(t, conn, `SET plan_cache_mode = `+mode)
	for name, statement := range statements {
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
		if text := strings.Join(plan, "\n"); name == "append_one_key" && !regexp.MustCompile(`Index Cond: \(\(page = [^)]*\) AND \(version >= `).MatchString(text) {
			t.Errorf("%s walks over all versions of a page:\n%s", name, text)
		}
	}
}

// leading are the columns that the indexes of the large tables begin with: without a condition on
// that one, an index is walked from end to end.
var leading = map[string]string{
	"batches_pkey": "batch", "events_pkey": `"position"`, "dead_letters_pkey": `"position"`,
	"dead_letters_by_failure": "failed_at", "dead_letters_failed_at": "failed_at", "dead_letters_requeued": "requeued_batch",
	"keys_pkey": "source", "heads_pkey": "page", "outbox_pkey": "xid", "outbox_refused": "id",
}

// mustLookUp wants each look into the large tables to be by a key, but for those that a LIMIT
// ends.
func mustLookUp(t *testing.T, name string, plan []string) {
	t.Helper()
	for i, line := range plan {
		large := slices.ContainsFunc([]string{" on batches", " on events", " on dead_letters", " on keys", " on heads", " on outbox"}, func(on string) bool {
			return strings.Contains(line, on)
		})
		if !large || !strings.Contains(line, "Scan") || strings.Contains(line, "Bitmap Heap Scan") {
			continue
		}
		limited := i > 0 && strings.Contains(plan[i-1], "Limit")
		keyed := i+1 < len(plan) && (strings.Contains(plan[i+1], "TID Cond") || byLeading(line, plan[i+1]))
		if !keyed && !limited {
			t.Errorf("%s walks over a whole table:\n%s", name, strings.Join(plan, "\n"))
		}
	}
}

// byLeading reports whether the condition of an index scan is on the index's leading column.
func byLeading(scan, condition string) bool {
	_, rest, found := strings.Cut(scan, " using ")
	if !found {
		_, rest, _ = strings.Cut(scan, "Bitmap Index Scan on ")
	}
	index, _, _ := strings.Cut(rest, " ")
	column, known := leading[index]
	return known && strings.Contains(condition, "Index Cond") && strings.Contains(condition, "("+column+" ")
}

// What must be planned anew has no plan that a connection keeps.
func TestPlannedAnew(t *testing.T) {
	s := mustStore(t)
	damaged := mustAppend(t, s, mustEvents(t, 1, 1)).batches[0]
	mustExec(t, s.pool, `UPDATE waybill.events SET event = ''`)
	if _, found, err := mustClaim(t, s, damaged.Lane, 100, staleFor{"ingress", time.Now().Add(time.Minute)}); err != nil || len(found) != 1 {
		t.Fatalf("damaged: %v, %v", found, err)
	}
	if done := mustSettle(t, s, receiptFor("ingress", damaged)); done.Late != 1 {
		t.Fatalf("late: %+v", done)
	}
	mustExec(t, s.pool, `UPDATE waybill.dead_letters SET delivered_late_at = NULL`)
	if n := mustPurge(t, s, LetterFilter{Sink: "archive"}); n != 1 {
		t.Fatalf("purged %d", n)
	}
	if letter := mustListOne(t, s, LetterFilter{}); letter.Sink != "ingress" {
		t.Fatalf("%+v", letter)
	}
	if n := mustRequeue(t, s, LetterFilter{}); n != 1 {
		t.Fatalf("requeued %d", n)
	}
	if _, err := s.PurgeDeadLetters(t.Context(), time.Hour, 1); err != nil {
		t.Fatal(err)
	}
	kept := map[string]bool{}
	for _, conn := range s.pool.AcquireAllIdle(t.Context()) {
		defer conn.Release()
		rows, err := conn.Query(t.Context(), `SELECT statement FROM pg_prepared_statements`)
		if err != nil {
			t.Fatal(err)
		}
		statements, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		for _, sql := range statements {
			kept[sql] = true
		}
	}
	if !kept[settleLockSQL] {
		t.Error("no plan of settle_lock is kept, so that nothing is compared")
	}
	texts, err := Statements()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range plannedAnew {
		if sql, ok := texts[name]; !ok || kept[sql] {
			t.Errorf("a connection keeps a plan of %s, or there is none (%v)", name, ok)
		}
	}
}

// What takes rows out of the outbox looks each up, also by a plan that was made while the table was empty.
func TestTakingLooksRowsUp(t *testing.T) {
	s := mustStore(t)
	conn, err := s.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	mustExec(t, conn, `ALTER TABLE waybill.outbox SET (autovacuum_enabled = off)`)
	mustExec(t, conn, `ANALYZE waybill.outbox`)
	mustExec(t, conn, `SET plan_cache_mode = force_generic_plan`)
	mustExec(t, conn, `SELECT waybill.take_outbox('{}', '{}', pg_postmaster_start_time())`)
	mustExec(t, conn, `INSERT INTO waybill.outbox (xid, id, source, type, event_id) SELECT i, i, '/s', 't', 'i' FROM generate_series(1, 20000) AS i`)
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(t.Context())
	mustExec(t, tx, `SELECT waybill.take_outbox(array_agg(i), array_agg(i), pg_postmaster_start_time()) FROM generate_series(19000::bigint, 19099) AS i`)
	var read int
	if err := tx.QueryRow(t.Context(), `SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relid = 'waybill.outbox'::regclass`).Scan(&read); err != nil || read > 200 {
		t.Fatalf("to take 100 rows of 20,000, %d were read (%v)", read, err)
	}
}

// mustCountPages returns how many pages a statement touches.
func mustCountPages(t *testing.T, from rowQuerier, sql string, args ...any) int {
	t.Helper()
	var out []byte
	for range 2 { // the first time it reads the catalog too
		if err := from.QueryRow(t.Context(), `EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) `+sql, append([]any{pgx.QueryExecModeExec}, args...)...).Scan(&out); err != nil {
			t.Fatal(err)
		}
	}
	var plans []struct {
		Plan map[string]any
	}
	if err := json.Unmarshal(out, &plans); err != nil {
		t.Fatal(err)
	}
	hit, _ := plans[0].Plan["Shared Hit Blocks"].(float64)
	read, _ := plans[0].Plan["Shared Read Blocks"].(float64)
	if hit+read == 0 {
		t.Fatalf("no page was touched: %s", out)
	}
	return int(hit + read)
}
