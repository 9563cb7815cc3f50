package pipeline

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/internal/pgtest"
)

// mustDedupeDatabase makes a database whose pipeline has the given window.
func mustDedupeDatabase(t testing.TB, window time.Duration) (url string) {
	t.Helper()
	url = pgtest.New(t)
	spec := testSpec
	spec.DedupeWindow = window
	if err := Migrate(t.Context(), url, spec); err != nil {
		t.Fatal(err)
	}
	return url
}

// mustDeduper is a deduper with a store of its own, as another ingest has it.
func mustDeduper(t testing.TB, url string) *deduper {
	t.Helper()
	d := newDeduper(mustStoreAt(t, url), DefaultDedupeBytes)
	if d == nil {
		t.Fatal("the pipeline has no window")
	}
	return d
}

// mustAppendOnce appends and returns how many events were stored.
func mustAppendOnce(t testing.TB, d *deduper, events []Event) (stored int) {
	t.Helper()
	_, again, err := d.appendOnce(t.Context(), events, time.Hour, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return len(events) - again.local - again.log
}

// assertOnce checks that each event was stored once, and no seqnum is missing.
func assertOnce(t testing.TB, s *Store, events int) {
	t.Helper()
	if n := mustCount(t, s, `SELECT count(*) FROM (SELECT FROM waybill.events GROUP BY source, event_id HAVING count(*) > 1) d`); n != 0 {
		t.Errorf("%d events were stored more than once", n)
	}
	if n := mustCount(t, s, `SELECT count(*) FROM waybill.events`); n != events {
		t.Errorf("%d events are stored, want %d", n, events)
	}
	assertDense(t, s)
}

// Invariant 11: what was accepted is not stored again, by whichever ingest it comes.
func TestRetriesAreStoredOnce(t *testing.T) {
	for _, n := range []int{1, smallFlush, smallFlush + 1, 3000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			url := mustDedupeDatabase(t, time.Minute)
			a, b := mustDeduper(t, url), mustDeduper(t, url)
			mustAppendOnce(t, b, []Event{mustEvent(t, "/other", "t", "x")}) // has loaded its set
			events := mustEvents(t, n, 7)
			for i, d := range []*deduper{a, a, b, b, mustDeduper(t, url)} {
				want := 0
				if i == 0 {
					want = n
				}
				if stored := mustAppendOnce(t, d, events); stored != want {
					t.Errorf("try %d stored %d events, want %d", i, stored, want)
				}
			}
			assertOnce(t, a.store, n+1)
		})
	}
}

// Of a call of which some events were accepted before, the others are stored, in order.
func TestOnlyTheDuplicatesAreLeftOut(t *testing.T) {
	url := mustDedupeDatabase(t, time.Minute)
	a, b := mustDeduper(t, url), mustDeduper(t, url)
	events := mustEvents(t, 200, 7)
	mustAppendOnce(t, b, events[:1])
	mustAppendOnce(t, a, events[50:100])
	_, again, err := b.appendOnce(t.Context(), append(events, events[10:20]...), 0, 1<<20)
	if err != nil || again != (duplicates{local: 11, log: 50}) {
		t.Fatalf("found %+v, %v; want 11 duplicates of its own and 50 of another's", again, err)
	}
	assertOnce(t, a.store, 200)
}

// Invariant 11, at the same moment: 64 writers give the same events to two ingests, whose
// connections break now and then.
func TestTwoIngestsStoreEachEventOnce(t *testing.T) {
	url := mustDedupeDatabase(t, time.Minute)
	queue := mustRig(t).queue
	var ins []*Ingester
	for range 2 {
		in, err := NewIngester(DefaultIngesterConfig(), mustStoreAt(t, url), queue, testLog(t), testMeter)
		if err != nil {
			t.Fatal(err)
		}
		mustRun(t, in.Run)
		ins = append(ins, in)
	}
	const writers, rounds, total = 64, 30, 3000
	events := mustEvents(t, total, 5)
	stop := mustRun(t, func(ctx context.Context) error { return killConnections(ctx, url) })
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(7, uint64(w)))
			for range rounds {
				from := random.IntN(total)
				sent := events[from:min(from+1+random.IntN(150), total)]
				acceptUntilTold(t, ins, random, sent)
			}
		})
	}
	wg.Wait()
	stop()
	acceptUntilTold(t, ins, rand.New(rand.NewPCG(7, 7)), events)
	assertOnce(t, ins[0].store, total)
}

// acceptUntilTold gives events to any ingest until one of them says that they are accepted.
func acceptUntilTold(t *testing.T, ins []*Ingester, random *rand.Rand, events []Event) {
	for deadline := time.Now().Add(time.Minute); ; {
		err := ins[random.IntN(len(ins))].Accept(t.Context(), events)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("not accepted: %v", err)
			return
		}
	}
}

// killConnections ends the connections of a database twice a second.
func killConnections(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	for ctx.Err() == nil {
		pause(ctx, 500*time.Millisecond)
		if _, err := conn.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name = 'waybill'`); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// With the window off, what comes again is stored again.
func TestWithoutAWindow(t *testing.T) {
	r := mustRig(t)
	for range 2 {
		r.mustAccept(t, mustEvents(t, 3, 1)...)
	}
	if n := r.pending(t); n != 6 {
		t.Fatalf("%d events stored, want 6", n)
	}
	if n := mustCount(t, r.store, `SELECT count(*) FROM waybill.dedupe_log`); n != 0 {
		t.Fatalf("%d rows in the log", n)
	}
}

// When the window is over, an event is a new one; and the log is bounded.
func TestTheWindowPasses(t *testing.T) {
	url := mustDedupeDatabase(t, time.Second)
	a, b := mustDeduper(t, url), mustDeduper(t, url)
	events := mustEvents(t, 3, 1)
	if mustAppendOnce(t, a, events) != 3 || mustAppendOnce(t, b, events) != 0 {
		t.Fatal("not stored, or stored again inside the window")
	}
	eventually(t, 10*time.Second, "the events are stored again", func() bool { return mustAppendOnce(t, b, events) == 3 })
	eventually(t, 10*time.Second, "the log is empty", func() bool {
		if err := a.store.ForgetAccepted(t.Context()); err != nil {
			t.Fatal(err)
		}
		return mustCount(t, a.store, `SELECT count(*) FROM waybill.dedupe_log`) == 0
	})
}

// A reader of hours holds up nobody, and what it reads is dropped later.
func TestForgettingWaitsForNoReader(t *testing.T) {
	url := mustDedupeDatabase(t, time.Second)
	d := mustDeduper(t, url)
	mustAppendOnce(t, d, mustEvents(t, 3, 1))
	tx, err := d.store.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(t.Context(), `SELECT FROM waybill.dedupe_log; SET LOCAL idle_in_transaction_session_timeout = 0`); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the reader is in the way", func() bool {
		began := time.Now()
		err := d.store.ForgetAccepted(t.Context())
		if took := time.Since(began); took > 2*time.Second {
			t.Fatalf("waited %v for a reader", took)
		}
		return errors.Is(err, errLogInUse)
	})
	mustAppendOnce(t, d, []Event{mustEvent(t, "/s", "t", "y")})
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the log is empty", func() bool {
		if err := d.store.ForgetAccepted(t.Context()); err != nil {
			t.Fatal(err)
		}
		return mustCount(t, d.store, `SELECT count(*) FROM waybill.dedupe_log`) == 0
	})
}
