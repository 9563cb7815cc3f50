package pipeline

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"

	"github.com/waybillhq/waybill/internal/pgtest"
	"github.com/waybillhq/waybill/schemas/postgres"
)

// A transaction that somebody holds open, such as a backup, keeps every version of a head. Moving
// it must not take longer with each of them.
func TestHeadsUnderAHeldTransaction(t *testing.T) {
	s := mustStore(t)
	mustAppend(t, s, mustEvents(t, 2, 1))
	held, err := s.pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = held.Rollback(context.Background()) }() // of no interest
	if _, err := held.Exec(t.Context(), `SELECT FROM waybill.heads`); err != nil {
		t.Fatal(err)
	}
	before := map[int]int{1: mustTouch(t, s, 1), 2: mustTouch(t, s, 2)}
	const moves = 3000
	for n := range moves {
		mustAppend(t, s, mustEventsFrom(t, n, 1+n%2))
	}
	for events, pages := range before {
		// The index has a level more, and the moves of a version may lie on several pages.
		if after := mustTouch(t, s, events); after > pages+30 {
			t.Errorf("a flush of %d touches %d pages after %d moves, %d before", events, after, moves, pages)
		}
	}
}

// mustEventsFrom are n events of the key that mustEvents has.
func mustEventsFrom(t testing.TB, id, n int) []Event {
	t.Helper()
	events := mustEvents(t, 1, 1)
	first := events[0]
	out := make([]Event, n)
	for i := range out {
		out[i] = mustEvent(t, first.Source, first.Type, fmt.Sprintf("moved-%d-%d", id, i))
	}
	return out
}

// mustTouch returns how many pages a flush of some events of one key touches.
func mustTouch(t *testing.T, s *Store, n int) int {
	t.Helper()
	f, err := newFlush(mustEventsFrom(t, 1<<30, n), s.lanes, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	tx, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }() // nothing is to stay
	query, args := f.statement(false, 0)
	return mustCountPages(t, tx, query, args...)
}

// Keys that several ingests see for the first time, some of them at once, get a place each.
func TestNewKeysAtOnce(t *testing.T) {
	url := pgtest.New(t)
	const stores, flushes, own, common = 8, 10, 5, 90
	var wg sync.WaitGroup
	for w := range stores {
		s := mustStoreAt(t, url)
		wg.Go(func() {
			for n := range flushes {
				var events []Event
				for i := range own {
					events = append(events, mustEvent(t, fmt.Sprintf("/own/%d/%d/%d", w, n, i), "t", "1"))
				}
				for i := n; i < common; i += flushes {
					events = append(events, mustEvent(t, fmt.Sprintf("/common/%d", (i*7+w)%common), "t", fmt.Sprintf("%d-%d-%d", w, n, i)))
				}
				if _, err := s.Append(t.Context(), events, 0, 1<<20); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	s := mustStoreAt(t, url)
	assertDense(t, s)
	const keys = stores*flushes*own + common
	if n := mustCount(t, s, `SELECT count(*) FROM waybill.keys WHERE id < $1`, keys); n != keys {
		t.Errorf("%d keys have an id below their number, want all %d", n, keys)
	}
	if n := mustCount(t, s, `SELECT count(DISTINCT page) FROM waybill.heads`); n != (keys+31)/32 || n != mustCount(t, s, `SELECT count(*) FROM waybill.heads`) {
		t.Errorf("%d pages, some of them twice; want %d", n, (keys+31)/32)
	}
}

// A store that knows keys to have heads finds out when they have none any more, as after a restore.
func TestKnownKeysWithoutHeads(t *testing.T) {
	for _, n := range []int{1, 2, smallFlush + 1} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			s := mustStore(t)
			for _, id := range []int{1, 2} {
				mustAppend(t, s, mustEventsFrom(t, id, n))
				assertDense(t, s)
				mustExec(t, s.pool, `TRUNCATE waybill.events, waybill.batches, waybill.keys, waybill.heads`)
			}
		})
	}
}

// A page of heads that was lost is not made anew, neither for its keys nor for one that would be on it:
// the seqnums that it had would be given out again.
func TestLostPageOfHeads(t *testing.T) {
	s := mustStore(t)
	mustAppend(t, s, mustEventsFrom(t, 1, 2))
	mustExec(t, s.pool, `DELETE FROM waybill.heads`)
	for _, events := range [][]Event{
		mustEventsFrom(t, 2, 1), mustEventsFrom(t, 2, 2),
		{mustEvent(t, "/new", "t", "1")},
		{mustEvent(t, "/new", "t", "1"), mustEvent(t, "/newer", "t", "1")},
	} {
		if _, err := s.Append(t.Context(), events, 0, 1<<20); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%d events of %s: %v; want that nothing can be stored", len(events), events[0].Source, err)
		}
	}
	if n := mustCount(t, s, `SELECT count(*) FROM waybill.heads`) + mustCount(t, s, `SELECT count(*) FROM waybill.events WHERE seqnum < 3`); n != 2 {
		t.Errorf("%d pages of heads and first seqnums; want those of the two events before", n)
	}
}

// Who copies many events of a new key does not keep others from new keys meanwhile, unless they come
// to lie on the same page.
func TestNewKeysDoNotWaitForCopies(t *testing.T) {
	s := mustStore(t)
	var events []Event
	for i := range 31 {
		events = append(events, mustEvent(t, fmt.Sprintf("/before/%d", i), "t", "1"))
	}
	mustAppend(t, s, events)
	events = nil
	for i := range smallFlush + 1 {
		events = append(events, mustEvent(t, "/copied", "t", fmt.Sprint(i)))
	}
	f, err := newFlush(events, s.lanes, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	f.newKeys = f.keys
	conn, err := s.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if _, err := openFlush(t.Context(), conn.Conn(), nil, f, 0); err != nil {
		t.Fatal(err)
	}
	// Before the session with the open transaction is ended for being idle.
	ctx, cancel := context.WithTimeout(t.Context(), patience/2)
	defer cancel()
	if _, err := s.Append(ctx, []Event{mustEvent(t, "/other", "t", "1")}, 0, 1<<20); err != nil {
		t.Errorf("while a copy is under way: %v", err)
	}
}

// The heads of an earlier version are the heads of this one.
func TestHeadsAreMigrated(t *testing.T) {
	url := pgtest.NewEmpty(t)
	mustMigrateTo(t, url, 5)
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	mustExec(t, conn, `INSERT INTO waybill.key_heads SELECT '/s/' || i % 50, 't' || i / 50, 1000 + i FROM generate_series(0, 99) AS i`)
	if err := Migrate(t.Context(), url, testSpec); err != nil {
		t.Fatal(err)
	}
	s := mustStoreAt(t, url)
	if n := mustCount(t, s, `SELECT count(*) FROM waybill.key_heads WHERE seqnum = 1000 + substr(source, 4)::int + 50 * substr(type, 2)::int`); n != 100 {
		t.Errorf("%d heads were kept, want 100", n)
	}
	mustAppend(t, s, []Event{mustEvent(t, "/s/7", "t1", "next"), mustEvent(t, "/s/new", "t1", "first")})
	if n := mustCount(t, s, `SELECT count(*) FROM waybill.events WHERE (event_id, seqnum) IN (('next', 1058), ('first', 1))`); n != 2 {
		t.Errorf("%d of 2 events have the seqnum that follows", n)
	}
}

// What an ingest of the earlier version commits while the heads are migrated is part of them.
func TestHeadsAreMigratedBesideAWriter(t *testing.T) {
	url := pgtest.NewEmpty(t)
	mustMigrateTo(t, url, 5)
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	mustExec(t, conn, `INSERT INTO waybill.key_heads VALUES ('/s', 't', 7)`)
	mustExec(t, conn, `BEGIN`)
	mustExec(t, conn, `UPDATE waybill.key_heads SET seqnum = 8`)
	mustExec(t, conn, `INSERT INTO waybill.key_heads VALUES ('/s', 'new', 3)`)
	migrated := make(chan error, 1)
	go func() { migrated <- Migrate(context.Background(), url, testSpec) }()
	waiting := func() (n int) {
		if err := conn.QueryRow(t.Context(), `SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'waybill.key_heads'::regclass`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for deadline := time.Now().Add(patience); waiting() == 0; {
		if time.Now().After(deadline) {
			t.Fatal("the migration does not wait for the writer")
		}
	}
	mustExec(t, conn, `COMMIT`)
	if err := <-migrated; err != nil {
		t.Fatal(err)
	}
	if n := mustCount(t, mustStoreAt(t, url), `SELECT count(*) FROM waybill.key_heads WHERE (type, seqnum) IN (('t', 8), ('new', 3))`); n != 2 {
		t.Errorf("%d of 2 heads are what the writer left", n)
	}
}

// mustMigrateTo makes the tables of an earlier version.
func mustMigrateTo(t *testing.T, url string, version int64) {
	t.Helper()
	db, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), `CREATE SCHEMA waybill`); err != nil {
		t.Fatal(err)
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, db, postgres.Migrations, goose.WithTableName("waybill.goose_db_version"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := provider.UpTo(t.Context(), version); err != nil {
		t.Fatal(err)
	}
}
