package pipeline

import (
	"context"
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/internal/pgtest"
)

// insertRow puts a row into the outbox as a restore does: with the number of a transaction of another time.
func insertRow(t testing.TB, db execer, xid, id int64, event string) {
	t.Helper()
	mustExec(t, db, fmt.Sprintf(`INSERT INTO waybill.outbox (xid, id, source, type, event_id, data, is_text) VALUES (%d, %d, '/s', 'test.event', '%s', 'x', true)`, xid, id, event))
}

// currentXID is the number of a transaction.
func currentXID(t testing.TB, tx pgx.Tx) (xid int64) {
	t.Helper()
	if err := tx.QueryRow(t.Context(), `SELECT pg_current_xact_id()::text::bigint`).Scan(&xid); err != nil {
		t.Fatal(err)
	}
	return xid
}

// Invariant 12: rows that were restored from another cluster under the very number of a transaction that is under way here
// are taken, and so are that one's, though a read ends between them.
func TestRestoredRowsOfATransactionUnderWay(t *testing.T) {
	r := mustRig(t)
	r.stop()
	service := mustService(t, r.url)
	open := service.mustBegin(t)
	xid := currentXID(t, open)
	var want []string
	for i := range int64(5) {
		id := fmt.Sprint("restored-", i)
		insertRow(t, r.store.pool, xid, 1_000_000+i, id)
		want = append(want, id)
	}
	in, _ := r.mustIngesterAt(t, r.url, leaveOutbox)
	s := r.mustBeliever(t, in)
	s.most.rows = 3
	round := func() {
		t.Helper()
		if err := s.round(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.land()
	}
	round()
	mustEmitIn(t, open, testCloudEvent("/s", "of here"))
	mustCommit(t, open)
	for range 10 {
		round()
	}
	assertStored(t, r.store, append(want, "of here"))
}

// Rows that come with a number that was read long ago, restored from a backup into a pipeline that runs, or put back by
// hand, are taken too.
func TestRowsWithNumbersOfThePast(t *testing.T) {
	r := mustRig(t)
	r.stop()
	service := mustService(t, r.url)
	in, _ := r.mustIngesterAt(t, r.url, leaveOutbox)
	s := r.mustBeliever(t, in)
	round := func() {
		t.Helper()
		if err := s.round(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.land()
	}
	service.mustEmit(t, testCloudEvent("/s", "first"))
	mustExec(t, r.store.pool, `INSERT INTO waybill.outbox (source, type, event_id, event) VALUES ('/s', 'test.event', 'by hand', 'ff')`)
	round()
	mustExec(t, r.store.pool, `UPDATE waybill.outbox SET event = NULL, refused_at = NULL, reason = NULL WHERE event_id = 'by hand'`)
	insertRow(t, r.store.pool, 5, 1, "restored")
	round()
	if n := mustCount(t, r.store, `SELECT count(*) FROM waybill.outbox`); n != 2 {
		t.Fatalf("%d rows wait, want 2: each look is at all there is", n)
	}
	s.wholeAt = time.Time{}
	round()
	assertStored(t, r.store, []string{"first", "restored", "by hand"})
}

// A janitor that has looked at the outbox before sees rows with a number that it has looked past.
func TestASurveySeesRowsOfThePast(t *testing.T) {
	r := mustRig(t)
	r.stop()
	j, err := NewJanitor(testJanitorConfig(), r.store, r.queue, testLog(t), testMeter)
	if err != nil {
		t.Fatal(err)
	}
	look := func(waiting int64) {
		t.Helper()
		if err := j.lookAtOutbox(t.Context()); err != nil || j.outbox().Waiting != waiting {
			t.Fatalf("%d rows wait, %v; want %d", j.outbox().Waiting, err, waiting)
		}
	}
	look(0)
	insertRow(t, r.store.pool, 5, 1, "restored")
	look(0)
	j.watched.outbox.wholeAt = time.Time{}
	look(1)
	look(1)
}

// A taker begins to work however many rows are deleted that vacuum may not remove, because somebody holds a transaction
// open: what a statement takes is bounded, and there may be more of them than it can look past.
func TestATakerBeginsBesideManyDeletedRows(t *testing.T) {
	t.Run("of many transactions", func(t *testing.T) { beginBesideDeletedRows(t, 2000) })
	t.Run("of one transaction", func(t *testing.T) { beginBesideDeletedRows(t, 10_000_000) })
}

// beginBesideDeletedRows is that test with transactions of so many rows.
func beginBesideDeletedRows(t *testing.T, each int) {
	r := mustRig(t)
	r.stop()
	service := mustService(t, r.url)
	mustExec(t, service.pool, fmt.Sprintf(`INSERT INTO waybill.outbox (xid, source, type, event_id, event)
		SELECT 3 + i / %d, '/s', 't', i::text, decode(repeat('78', 100), 'hex') FROM generate_series(1, 1000000) AS i`, each))
	old, err := service.pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	defer old.Rollback(context.Background())
	mustExec(t, old, `SELECT count(*) FROM public.orders`)
	mustExec(t, service.pool, `DELETE FROM waybill.outbox`)
	insertRow(t, r.store.pool, 40_000_000, 10_000_001, "restored")
	service.mustEmit(t, testCloudEvent("/s", "a"))
	cfg := DefaultStoreConfig(r.url)
	cfg.StatementTimeout, cfg.KeepPlans = 40*time.Millisecond, true // as ingest does
	store := mustStoreWith(t, cfg)
	in, err := NewIngester(DefaultIngesterConfig(), store, r.queue, testLog(t), testMeter)
	if err != nil {
		t.Fatal(err)
	}
	mustRun(t, in.Run)
	awaitTaken(t, r.store)
	service.mustEmit(t, testCloudEvent("/s", "b"))
	awaitTaken(t, r.store)
	assertStored(t, r.store, []string{"a", "b", "restored"})
}

// A read looks no further than it is asked to: not at what is deleted behind that in the same transaction, nor at what waits
// behind the rows that are wanted, also where Postgres has never counted the rows.
func TestAReadLooksNoFurther(t *testing.T) {
	url := pgtest.New(t)
	s := mustStoreAt(t, url)
	mustExec(t, s.pool, `ALTER TABLE waybill.outbox SET (autovacuum_enabled = off)`)
	const rows = 100_000
	insert := func(xid int) {
		t.Helper()
		mustExec(t, s.pool, fmt.Sprintf(`INSERT INTO waybill.outbox (xid, id, source, type, event_id, event)
			SELECT %d, i, '/s', 't', i::text, decode(repeat('78', 100), 'hex') FROM generate_series(1, %d) AS i`, xid, rows))
	}
	insert(3)
	old, err := s.pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	defer old.Rollback(context.Background())
	mustExec(t, old, `SELECT FROM waybill.pipeline`) // takes the snapshot
	mustExec(t, s.pool, `DELETE FROM waybill.outbox`)
	insert(4)
	cfg := DefaultStoreConfig(url)
	cfg.KeepPlans = true // as ingest does
	store := mustStoreWith(t, cfg)
	conn, err := store.connectOutbox(t.Context(), patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	shards := make([]int16, outboxShards)
	for i := range shards {
		shards[i] = int16(i)
	}
	for name, c := range map[string]struct {
		after, last outboxKey
		rows        int
	}{
		"the first of one transaction": {outboxKey{2, math.MaxInt64}, outboxKey{3, 10}, 4096},
		"more of one transaction":      {outboxKey{3, rows / 2}, outboxKey{3, rows/2 + 10}, 4096},
		"a few of many":                {outboxKey{3, math.MaxInt64}, lastOutboxKey, 10},
		"the last of one transaction":  {outboxKey{4, rows - 10}, outboxKey{4, math.MaxInt64}, 4096},
	} {
		if n := mustCountPages(t, conn, outboxReadSQL, []int64{}, []int64{}, c.after.xid, c.after.id, shards, c.rows, 1<<20, c.last.xid, c.last.id); n > 80 {
			t.Errorf("%s: a read touches %d pages", name, n)
		}
	}
}

// A survey walks over nothing that an earlier one has found gone, also while a transaction that has emitted is open, and
// finds what that one commits.
func TestASurveyBesideAnOpenTransaction(t *testing.T) {
	r := mustRig(t)
	r.stop()
	service := mustService(t, r.url)
	open := service.mustBegin(t)
	mustEmitIn(t, open, testCloudEvent("/s", "open"))
	cfg := DefaultStoreConfig(r.url)
	cfg.StatementTimeout = 40 * time.Millisecond
	store := mustStoreWith(t, cfg)
	var survey OutboxSurvey
	look := func(waiting int64) {
		t.Helper()
		eventually(t, patience/2, fmt.Sprint("a survey sees ", waiting), func() bool {
			next, err := store.SurveyOutbox(t.Context(), survey)
			if err != nil {
				return false // a loaded machine takes long
			}
			survey = next
			return survey.Waiting == waiting
		})
	}
	look(0)
	for range 15 {
		mustExec(t, service.pool, `INSERT INTO waybill.outbox (source, type, event_id, event) SELECT '/s', 't', i::text, decode(repeat('78', 100), 'hex') FROM generate_series(1, 50000) AS i`)
		mustExec(t, service.pool, `DELETE FROM waybill.outbox`)
		look(0)
	}
	service.mustEmit(t, testCloudEvent("/s", "other"))
	look(1)
	mustCommit(t, open)
	look(2)
	look(2)
	mustExec(t, service.pool, `DELETE FROM waybill.outbox`)
	look(0)
	if len(survey.late) > 0 {
		t.Errorf("%v are still looked for", survey.late)
	}
}
