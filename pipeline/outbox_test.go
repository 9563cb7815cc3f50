package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"google.golang.org/protobuf/proto"
)

// Invariant 12: of 100 transactions, the events of those that commit become events, and are queued; the
// others never were.
func TestTheOutboxHasWhatCommits(t *testing.T) {
	for name, emit := range emitWays {
		t.Run(name, func(t *testing.T) {
			r := mustPatientRig(t)
			s := mustService(t, r.url)
			const callers, each = 10, 10
			var mu sync.Mutex
			var committed []string
			var wg sync.WaitGroup
			for c := range callers {
				wg.Go(func() {
					for i := range each {
						var events []CloudEvent
						var ids []string
						for n := range 1 + i%3 {
							id := fmt.Sprintf("%d-%d-%d", c, i, n)
							events, ids = append(events, testCloudEvent(fmt.Sprint("/orders/", c%3), id)), append(ids, id)
						}
						commit := (c+i)%2 == 0
						if err := emit(t.Context(), s, commit, events); err != nil {
							t.Error(err)
						}
						if commit {
							mu.Lock()
							committed = append(committed, ids...)
							mu.Unlock()
						}
					}
				})
			}
			wg.Wait()
			awaitTaken(t, r.store)
			assertStored(t, r.store, committed)
			if n := mustCount(t, r.store, `SELECT count(*) FROM public.orders`); n != len(committed) {
				t.Errorf("%d orders, and %d events", n, len(committed))
			}
			r.assertInOrder(t, len(committed))
		})
	}
}

// Savepoints count: what was emitted behind one that was rolled back to never was.
func TestSavepointsCount(t *testing.T) {
	r := mustRig(t)
	tx := mustService(t, r.url).mustBegin(t)
	mustEmitIn(t, tx, testCloudEvent("/s", "before"))
	inner, err := tx.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mustEmitIn(t, inner, testCloudEvent("/s", "taken back"))
	if err := inner.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if inner, err = tx.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustEmitIn(t, inner, testCloudEvent("/s", "kept"))
	mustCommit(t, inner)
	mustCommit(t, tx)
	awaitTaken(t, r.store)
	if got := storedIDs(t, r.store)["/s"]; !slices.Equal(got, []string{"before", "kept"}) {
		t.Fatalf("stored %v", got)
	}
}

// An invalid event is refused before anything is sent, so that the transaction can go on.
func TestEmitTxRefusesInvalidEvents(t *testing.T) {
	r := mustRig(t)
	tx := mustService(t, r.url).mustBegin(t)
	var fault *InvalidEventError
	if err := EmitTx(t.Context(), tx, testCloudEvent("/s", "good"), CloudEvent{Source: "/s"}); !errors.As(err, &fault) || fault.Attribute != "type" {
		t.Fatalf("without a type: %v", err)
	}
	if err := EmitTx(t.Context(), tx, CloudEvent{Source: "/s", Type: "t", Data: BinaryData(make([]byte, DefaultMaxEventBytes))}); !errors.As(err, &fault) || !fault.TooLarge {
		t.Fatalf("too large: %v", err)
	}
	if err := EmitTx(t.Context(), tx); err != nil {
		t.Fatalf("no event: %v", err)
	}
	mustEmitIn(t, tx, testCloudEvent("/s", "later"))
	mustCommit(t, tx)
	awaitTaken(t, r.store)
	assertStored(t, r.store, []string{"later"})
}

// What is emitted becomes the event that an ingest would have made of it.
func TestEmittedEventsAreWhole(t *testing.T) {
	r := mustRig(t)
	s := mustService(t, r.url)
	at := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	whole := CloudEvent{
		Source: "/orders?x=1", Type: "com.example.order.placed", ID: `quotes " and \ and {braces}`, Subject: "17", Time: at, DataSchema: "https://example.com/order",
		Data: JSONData(map[string]int{"total": 9}), Extensions: map[string]AttributeValue{"tenant": StringValue("a"), "priority": IntegerValue(3), "urgent": BooleanValue(true)},
	}
	others := []CloudEvent{
		{Source: "/bytes", Type: "t", ID: "b", Data: BinaryData([]byte{0, 1, 2})},
		{Source: "/none", Type: "t", ID: "n"},
		{Source: "/large", Type: "t", ID: "l", Data: BinaryData(make([]byte, 900_000))},
	}
	all := append([]CloudEvent{whole}, others...)
	for name, emit := range emitWays {
		if name == "SQL" {
			continue // TestEmitInSQL
		}
		if err := emit(t.Context(), s, true, all); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		awaitTaken(t, r.store)
		for i := range all {
			want, err := encodeEmitted(t.Context(), &all[i], DefaultMaxEventBytes, "")
			if err != nil {
				t.Fatal(err)
			}
			assertSameEvent(t, name, mustStored(t, r.store, want.Source), want.Encoded)
		}
		mustExec(t, r.store.pool, `TRUNCATE waybill.events, waybill.batches, public.orders`)
	}
}

// mustStored is the encoding of the one event of a source.
func mustStored(t testing.TB, s *Store, source string) (encoded []byte) {
	t.Helper()
	if err := s.pool.QueryRow(t.Context(), `SELECT event FROM waybill.events WHERE source = $1`, source).Scan(&encoded); err != nil {
		t.Fatalf("%s: %v", source, err)
	}
	return encoded
}

func assertSameEvent(t testing.TB, what string, got, want []byte) {
	t.Helper()
	var g, w pb.CloudEvent
	if err := errors.Join(proto.Unmarshal(got, &g), proto.Unmarshal(want, &w)); err != nil {
		t.Fatal(err)
	}
	if !proto.Equal(&g, &w) {
		t.Errorf("%s: stored %v, want %v", what, &g, &w)
	}
}

// Invariant 12: who has emitted and not committed holds up nobody: not another who emits for the same
// key, not the taker, not an ingest.
func TestAnOpenTransactionHoldsUpNobody(t *testing.T) {
	r := mustRig(t)
	s := mustService(t, r.url)
	open := s.mustBegin(t)
	mustEmitIn(t, open, testCloudEvent("/s", "open"))
	for i := range 10 {
		tx := s.mustBegin(t)
		if _, err := tx.Exec(t.Context(), `SET LOCAL lock_timeout = '1ms'`); err != nil {
			t.Fatal(err)
		}
		mustEmitIn(t, tx, testCloudEvent("/s", fmt.Sprint("other-", i)))
		mustCommit(t, tx)
	}
	eventually(t, patience, "the others' events are stored", func() bool { return len(storedIDs(t, r.store)["/s"]) == 10 })
	r.mustAccept(t, mustEvent(t, "/s", "test.event", "of an ingest"))
	if err := open.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.mustEmit(t, testCloudEvent("/s", "last"))
	eventually(t, patience, "the last one is stored", func() bool { return len(storedIDs(t, r.store)["/s"]) == 12 })
	if got := storedIDs(t, r.store)["/s"]; slices.Contains(got, "open") || got[11] != "last" {
		t.Fatalf("stored %v", got)
	}
	assertDense(t, r.store)
}

// Invariant 12: a transaction that emits first and commits last, when thousands of later rows were taken and the
// taker slept, is taken too. So is one that has drawn its ids before others, and begins to emit after them.
func TestALateCommitIsTaken(t *testing.T) {
	r := mustRig(t)
	s := mustService(t, r.url)
	var late []pgx.Tx
	var want []string
	for i := range 3 {
		tx := s.mustBegin(t)
		mustEmitIn(t, tx, testCloudEvent("/late", fmt.Sprint("late-", i)))
		late, want = append(late, tx), append(want, fmt.Sprint("late-", i))
	}
	emit := func(round int) {
		for i := range 5 {
			var events []CloudEvent
			for n := range 1000 {
				id := fmt.Sprintf("%d-%d-%d", round, i, n)
				events, want = append(events, testCloudEvent(fmt.Sprint("/s/", n%7), id)), append(want, id)
			}
			s.mustEmit(t, events...)
		}
	}
	for i, tx := range late {
		emit(i)
		eventually(t, patience, "what is committed is taken", func() bool {
			return mustCount(t, r.store, `SELECT count(*) FROM waybill.outbox`) == 0
		})
		if i > 0 {
			mustSleep(t, r.store)
		}
		mustEmitIn(t, tx, testCloudEvent("/late", fmt.Sprint("more-", i)))
		want = append(want, fmt.Sprint("more-", i))
		mustCommit(t, tx)
		eventually(t, patience, "the late one is taken", func() bool {
			return mustCount(t, r.store, `SELECT count(*) FROM waybill.events WHERE event_id = 'more-`+fmt.Sprint(i)+`'`) == 1
		})
	}
	assertStored(t, r.store, want)
}

// mustSleep waits until a taker says that it sleeps.
func mustSleep(t testing.TB, s *Store) {
	t.Helper()
	eventually(t, patience, "the taker sleeps", func() bool {
		return mustCount(t, s, `SELECT (last_value & 65535)::int FROM waybill.outbox_sleepers`) == 1<<outboxShards-1
	})
}

// Invariant 12: what one session emits for a key, in one transaction or one after another, keeps its order, while
// others commit late, takers come and go, and connections break.
func TestOutboxKeepsTheOrderOfASession(t *testing.T) {
	r := mustRig(t)
	s := mustService(t, r.url)
	for range 2 {
		r.mustIngesterAt(t, r.url, nil)
	}
	stopKilling := mustRun(t, func(ctx context.Context) error { return killConnections(ctx, r.url) })
	const sessions, transactions = 8, 60
	var wg sync.WaitGroup
	want := make([]map[string][]string, sessions)
	for c := range sessions {
		want[c] = map[string][]string{}
		wg.Go(func() {
			conn, err := s.pool.Acquire(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Release()
			n := 0
			for i := range transactions {
				err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
					for range 1 + i%4 {
						source := fmt.Sprintf("/s/%d/%d", c, n%3)
						id := fmt.Sprintf("%d-%d", c, n)
						n++
						want[c][source] = append(want[c][source], id)
						if err := EmitTx(t.Context(), tx, testCloudEvent(source, id)); err != nil {
							return err
						}
					}
					if i%20 == c {
						pause(t.Context(), 300*time.Millisecond)
					}
					return nil
				})
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	stopKilling()
	awaitTaken(t, r.store)
	got := storedIDs(t, r.store)
	for c := range sessions {
		for source, ids := range want[c] {
			if !slices.Equal(got[source], ids) {
				t.Errorf("%s: stored %v, emitted %v", source, got[source], ids)
			}
		}
	}
	assertDense(t, r.store)
}

// An event that was accepted before is not stored again, and its row goes all the same: alone, and among others.
func TestKnownEventsLeaveTheOutbox(t *testing.T) {
	r := mustRigAt(t, mustDedupeDatabase(t, time.Minute))
	s := mustService(t, r.url)
	r.mustAccept(t, mustEvent(t, "/s", "test.event", "known"))
	s.mustEmit(t, testCloudEvent("/s", "known"))
	awaitTaken(t, r.store)
	s.mustEmit(t, testCloudEvent("/s", "known"), testCloudEvent("/s", "new"), testCloudEvent("/s", "new"))
	awaitTaken(t, r.store)
	assertStored(t, r.store, []string{"known", "new"})
}

// Bounded: while the backlog is full, rows wait in the outbox, and the process says so.
func TestTheOutboxWaitsForTheBacklog(t *testing.T) {
	r := mustRig(t)
	in := r.mustLimited(t, func(c *IngesterConfig) { c.BacklogEvents = 10 })
	for range 12 {
		if err := in.Accept(t.Context(), []Event{laneEvent(t, "x")}); errors.Is(err, ErrBacklogFull) {
			break
		}
	}
	r.stop() // and with it its taker
	mustService(t, r.url).mustEmit(t, testCloudEvent("/s", "waits"))
	eventually(t, patience, "the process says that rows wait", func() bool {
		err := in.OutboxProblem()
		return err != nil && strings.Contains(err.Error(), "rows wait in the outbox")
	})
	time.Sleep(300 * time.Millisecond)
	if n := mustCount(t, r.store, `SELECT count(*) FROM waybill.outbox`); n != 1 {
		t.Fatalf("%d rows in the outbox of a full pipeline, want 1", n)
	}
	r.mustSettleAllBut(t, 0)
	r.mustSurvey(t)
	awaitTaken(t, r.store)
	eventually(t, patience, "the process is well", func() bool { return in.OutboxProblem() == nil })
}

// Producers who keep an ingest's queue full do not keep out what waits in the outbox.
func TestAFloodDoesNotKeepTheOutboxOut(t *testing.T) {
	r := mustRig(t)
	in := r.mustLimited(t, func(c *IngesterConfig) { c.QueueEvents = 10 })
	r.stop()                                                                   // and with it its taker
	if err := in.Accept(t.Context(), []Event{laneEvent(t, "x")}); err != nil { // its key has a head
		t.Fatal(err)
	}
	release := mustHoldHeads(t, r.store)
	var waiting []<-chan error
	flood := func() { waiting = append(waiting, in.Submit([]Event{laneEvent(t, "x")})) }
	flood()
	eventually(t, patience, "a transaction is under way", func() bool { n, _ := in.queueFill(); return n == 0 })
	for range 10 {
		flood()
	}
	mustService(t, r.url).mustEmit(t, testCloudEvent("/s", "waits"))
	eventually(t, patience, "what is in the outbox waits with the others", func() bool { n, _ := in.queueFill(); return n == 11 })
	if err := in.Accept(t.Context(), []Event{laneEvent(t, "x")}); !errors.Is(err, ErrOverloaded) {
		t.Errorf("a producer is answered %v, want ErrOverloaded", err)
	}
	release()
	for _, done := range waiting {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	awaitTaken(t, r.store)
}

// The roles: who has USAGE on the schema may emit, by each way, and see nothing of others' events.
func TestWhoMayEmit(t *testing.T) {
	r := mustRig(t)
	s := mustService(t, r.url)
	tx := s.mustBegin(t)
	for _, sql := range []string{`CREATE ROLE outbox_caller`, `GRANT USAGE ON SCHEMA waybill TO outbox_caller`, `SET LOCAL ROLE outbox_caller`} {
		if _, err := tx.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	mustEmitIn(t, tx, testCloudEvent("/s", "go"))
	if _, err := tx.Exec(t.Context(), `SELECT waybill.emit('/s', 'test.event', 'x', id => 'sql')`); err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{`SELECT count(*) FROM waybill.outbox`, `DELETE FROM waybill.outbox`, `SELECT waybill.take_outbox('{1}', '{1}', pg_postmaster_start_time())`} {
		inner, err := tx.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var refused *pgconn.PgError
		if _, err := inner.Exec(t.Context(), sql); !errors.As(err, &refused) || refused.Code != "42501" {
			t.Errorf("%s: %v, want insufficient_privilege", sql, err)
		}
		if err := inner.Rollback(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tx.Exec(t.Context(), `RESET ROLE`); err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{`REVOKE USAGE ON SCHEMA waybill FROM outbox_caller`, `DROP ROLE outbox_caller`} {
		if _, err := tx.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	mustCommit(t, tx)
	awaitTaken(t, r.store)
	assertStored(t, r.store, []string{"go", "sql"})
}
