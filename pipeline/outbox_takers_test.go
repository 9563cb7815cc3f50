package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/internal/pgtest"
	"github.com/waybillhq/waybill/test/faults/proxy"
)

// Invariant 12: each row becomes one event, without a dedupe log, while three ingests take, their connections are
// broken and one of them is stopped and another started.
func TestTakersTakeEachRowOnce(t *testing.T) {
	r := mustRig(t)
	s := mustService(t, r.url)
	_, stop := r.mustIngesterAt(t, r.url, nil)
	r.mustIngesterAt(t, r.url, nil)
	later := r.mustIngester(t, r.url, nil)
	stopKilling := mustRun(t, func(ctx context.Context) error { return killConnections(ctx, r.url) })
	const callers, each = 8, 150
	var wg sync.WaitGroup
	var want []string
	for c := range callers {
		for i := range each {
			want = append(want, fmt.Sprintf("%d-%d", c, i))
		}
		wg.Go(func() {
			for i := range each {
				err := pgx.BeginFunc(t.Context(), s.pool, func(tx pgx.Tx) error {
					return EmitTx(t.Context(), tx, testCloudEvent(fmt.Sprint("/s/", i%11), fmt.Sprintf("%d-%d", c, i)))
				})
				if err != nil {
					t.Error(err)
				}
				if i%50 == 49 {
					pause(t.Context(), 300*time.Millisecond)
				}
			}
		})
	}
	pause(t.Context(), time.Second)
	stop()
	mustRun(t, later.Run)
	wg.Wait()
	stopKilling()
	awaitTaken(t, r.store)
	assertStored(t, r.store, want)
}

// believer is a taker that takes from all shards without asking.
func (r *rig) mustBeliever(t testing.TB, in *Ingester) *takerSession {
	t.Helper()
	tk, err := newTaker(in, testMeter)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := r.store.connectOutbox(t.Context(), patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	s := &takerSession{taker: tk, conn: conn, active: time.Now(), shared: time.Now().Add(time.Hour)}
	for shard := range int16(outboxShards) {
		s.shards = append(s.shards, shard)
	}
	return s
}

// Invariant 12: of two takers that both believe to have a shard, and have read the same rows, one commits; the
// other is told so, reads anew, and takes what came since.
func TestTwoTakersThatBothBelieve(t *testing.T) {
	for _, events := range []int{1, smallFlush + 1} {
		t.Run(fmt.Sprint(events), func(t *testing.T) {
			r := mustRig(t)
			r.stop()
			service := mustService(t, r.url)
			one, _ := r.mustIngesterAt(t, r.url, leaveOutbox)
			two, _ := r.mustIngesterAt(t, r.url, leaveOutbox)
			if err := one.Accept(t.Context(), []Event{mustEvent(t, "/s", "test.event", "first")}); err != nil {
				t.Fatal(err)
			}
			release := mustHoldHeads(t, r.store)
			want := []string{"first"}
			var emitted []CloudEvent
			for i := range events {
				emitted, want = append(emitted, testCloudEvent("/s", fmt.Sprint(i))), append(want, fmt.Sprint(i))
			}
			service.mustEmit(t, emitted...)
			a, b := r.mustBeliever(t, one), r.mustBeliever(t, two)
			for _, s := range []*takerSession{a, b} {
				if err := s.round(t.Context()); err != nil || s.flying == nil {
					t.Fatalf("submitted %v, %v", s.flying, err)
				}
			}
			eventually(t, patience, "both wait", func() bool {
				return mustCount(t, r.store, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) == 2
			})
			service.mustEmit(t, testCloudEvent("/s", "since"))
			want = append(want, "since")
			release()
			errA, errB := <-a.flying.done, <-b.flying.done
			if errA != nil {
				a, b, errA, errB = b, a, errB, errA
			}
			if !a.landed(errA) || !errors.Is(errB, errTakenElsewhere) || b.landed(errB) {
				t.Fatalf("one is told %v, the other %v", errA, errB)
			}
			if err := b.round(t.Context()); err != nil || !b.land() {
				t.Fatal("what came since was not taken", err)
			}
			if got := storedIDs(t, r.store)["/s"]; !slices.Equal(got, want) {
				t.Fatalf("stored %v, want %v", got, want)
			}
			if err := errors.Join(one.Health(), two.Health()); err != nil {
				t.Errorf("that another took the rows is no trouble: %v", err)
			}
		})
	}
}

// The same for as long as a load lasts: each row once, and in order.
func TestBelieversUnderLoad(t *testing.T) {
	r := mustRig(t)
	r.stop()
	service := mustService(t, r.url)
	for range 2 {
		in, _ := r.mustIngesterAt(t, r.url, leaveOutbox)
		s := r.mustBeliever(t, in)
		mustRun(t, func(ctx context.Context) error { err := s.take(ctx); s.land(); return err })
	}
	var want []string
	for i := range 500 {
		id := fmt.Sprint(i)
		service.mustEmit(t, testCloudEvent("/s", id))
		want = append(want, id)
	}
	awaitTaken(t, r.store)
	if got := storedIDs(t, r.store)["/s"]; !slices.Equal(got, want) {
		t.Fatalf("stored %v", got)
	}
}

// Invariant 12: where the answer to the transaction that takes rows is lost, each is stored once all the same: by one
// statement and by COPY, without a dedupe log.
func TestTakenRowsOfUnknownOutcome(t *testing.T) {
	for _, n := range []int{1, smallFlush + 1} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			r := mustRig(t)
			r.stop()
			way, through := mustProxy(t, r.url, committed)
			in, _ := r.mustIngesterAt(t, through, leaveOutbox)
			if err := in.Accept(t.Context(), []Event{mustEvent(t, "/s", "test.event", "first")}); err != nil {
				t.Fatal(err)
			}
			s := r.mustBeliever(t, in) // reads past the proxy
			want := []string{"first"}
			var events []CloudEvent
			for i := range n {
				events, want = append(events, testCloudEvent("/s", fmt.Sprint(i))), append(want, fmt.Sprint(i))
			}
			mustService(t, r.url).mustEmit(t, events...)
			way.Set(proxy.Fault{Mode: proxy.LoseResponse, Every: 1})
			if err := s.round(t.Context()); err != nil {
				t.Fatal(err)
			}
			if answer := <-s.flying.done; !errors.Is(answer, ErrOutcomeUnknown) || s.landed(answer) {
				t.Fatalf("the answer is %v, want that the outcome is unknown", answer)
			}
			way.Set(proxy.Fault{Mode: proxy.Pass})
			if err := s.round(t.Context()); err != nil || !s.land() {
				t.Fatal("the next round failed", err)
			}
			awaitTaken(t, r.store)
			if got := storedIDs(t, r.store)["/s"]; !slices.Equal(got, want) {
				t.Fatalf("stored %v", got)
			}
		})
	}
}

// Invariant 12: a transaction that took rows and stands still is not outrun: who reads the rows again waits for it, and
// takes them only if it does not commit.
func TestATakerThatStandsStill(t *testing.T) {
	for _, commits := range []bool{true, false} {
		t.Run(fmt.Sprint("commits ", commits), func(t *testing.T) {
			r := mustRig(t)
			r.stop()
			r.mustBelieved(t, commits)
		})
	}
}

func (r *rig) mustBelieved(t *testing.T, commits bool) {
	t.Helper()
	mustService(t, r.url).mustEmit(t, testCloudEvent("/s", "a"), testCloudEvent("/s", "b"))
	in, _ := r.mustIngesterAt(t, r.url, leaveOutbox)
	s := r.mustBeliever(t, in)
	still, err := r.store.pool.Begin(t.Context()) // another taker's, behind its DELETE
	if err != nil {
		t.Fatal(err)
	}
	defer still.Rollback(context.Background())
	if _, err := still.Exec(t.Context(), `SELECT waybill.take_outbox(array_agg(xid), array_agg(id), pg_postmaster_start_time()) FROM waybill.outbox WHERE event_id = 'a'`); err != nil {
		t.Fatal(err)
	}
	if err := s.round(t.Context()); err != nil || s.flying == nil {
		t.Fatalf("%v, %v", s.flying, err)
	}
	mustWaitForALock(t, r.store)
	want := []string{"a", "b"}
	if commits {
		want = []string{"b"} // here the other one's event would be stored with its DELETE
		mustCommit(t, still)
	} else if err := still.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.land() == commits {
		t.Fatalf("landed %v", !commits)
	}
	if err := s.round(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.land()
	if got := storedIDs(t, r.store)["/s"]; !slices.Equal(got, want) {
		t.Fatalf("stored %v, want %v", got, want)
	}
}

// What came in from producers does not suffer from a row that another taker has.
func TestARowThatIsGoneFailsAlone(t *testing.T) {
	r := mustRig(t)
	in := r.mustIngester(t, r.url, leaveOutbox)
	answers := []<-chan error{
		in.Submit([]Event{mustEvent(t, "/s", "t", "of a producer")}),
		nil,
		nil,
	}
	gone := make(answerChannel, 1)
	in.submit(&unit{events: []Event{mustEvent(t, "/s", "t", "of a row that is gone")}, taken: takenRows{[]outboxKey{{xid: 1, id: 1}}, serverStart(t, r.store)}, asked: gone})
	answers[1], answers[2] = gone, in.Submit([]Event{mustEvent(t, "/s", "t", "of another")})
	mustRun(t, in.Run)
	for i, done := range answers {
		if err := <-done; (i == 1) != errors.Is(err, errTakenElsewhere) || (i != 1 && err != nil) {
			t.Errorf("unit %d: %v", i, err)
		}
	}
	assertStored(t, r.store, []string{"of a producer", "of another"})
}

// The takers share the shards out, and those of one that stops are taken by the others.
func TestTakersShareTheShards(t *testing.T) {
	r := mustRig(t)
	held := func(ins ...*Ingester) (all []int) {
		for _, in := range ins {
			shards, _ := in.taker.state()
			all = append(all, shards)
		}
		return all
	}
	eventually(t, patience, "one has all", func() bool { return slices.Equal(held(r.in), []int{16}) })
	two, stopTwo := r.mustIngesterAt(t, r.url, nil)
	eventually(t, patience, "each of two has half", func() bool { return slices.Equal(held(r.in, two), []int{8, 8}) })
	three, _ := r.mustIngesterAt(t, r.url, nil)
	eventually(t, patience, "three have a third each", func() bool {
		all := held(r.in, two, three)
		return slices.Max(all) <= 6 && all[0]+all[1]+all[2] == 16
	})
	stopTwo()
	eventually(t, patience, "the two that are left have half each", func() bool { return slices.Equal(held(r.in, three), []int{8, 8}) })
	mustService(t, r.url).mustEmit(t, testCloudEvent("/s", "last"))
	awaitTaken(t, r.store)
}

// A taker sleeps when there is nothing to do, is notified of what comes, and is awake while there is work. Nobody
// notifies takers that are awake or gone.
func TestATakerIsWoken(t *testing.T) {
	r := mustRig(t)
	s := mustService(t, r.url)
	mustSleep(t, r.store)
	listener, err := pgx.Connect(t.Context(), r.url)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close(context.Background())
	mustExec(t, listener, `LISTEN waybill_outbox`)
	// notified tells whether anybody was since it told last: notifications come in the order of their commits.
	notified := func() (yes bool) {
		t.Helper()
		mustExec(t, r.store.pool, `SELECT pg_notify('waybill_outbox', 'the last one')`)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		for {
			n, err := listener.WaitForNotification(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if n.Payload == "the last one" {
				return yes
			}
			yes = true
		}
	}
	began := time.Now()
	s.mustEmit(t, testCloudEvent("/s", "one"))
	eventually(t, patience, "the event is stored", func() bool { return len(storedIDs(t, r.store)["/s"]) == 1 })
	t.Logf("a lone event was stored after %v", time.Since(began))
	if !notified() {
		t.Error("a taker that sleeps is not notified")
	}
	r.stop()
	awaitTaken(t, r.store)
	for what, sql := range map[string]string{
		"are awake": `SELECT waybill.outbox_sleep(65535, false)`,
		"are gone":  `SELECT setval('waybill.outbox_sleepers', ((extract(epoch FROM clock_timestamp()) * 1000)::bigint - 10 << 16) | 65535)`,
	} {
		mustExec(t, r.store.pool, sql)
		s.mustEmit(t, testCloudEvent("/s", what))
		if notified() {
			t.Errorf("takers that %s are notified", what)
		}
	}
	quiet := s.mustBegin(t)
	mustExec(t, quiet, `SET LOCAL waybill.notify = off`)
	mustExec(t, r.store.pool, `SELECT waybill.outbox_sleep(65535, true)`)
	mustEmitIn(t, quiet, testCloudEvent("/s", "quiet"))
	mustCommit(t, quiet)
	if notified() {
		t.Error("a transaction that is not to notify does")
	}
	mustExec(t, r.store.pool, `SELECT waybill.outbox_sleep(65535, false)`)
	// The caller's snapshot is of before the taker fell asleep: it is to notify all the same.
	old, err := s.pool.BeginTx(t.Context(), pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	defer old.Rollback(context.Background())
	mustExec(t, old, `SELECT count(*) FROM public.orders`)
	mustExec(t, r.store.pool, `SELECT waybill.outbox_sleep(65535, true)`)
	mustEmitIn(t, old, testCloudEvent("/s", "two"))
	mustCommit(t, old)
	if !notified() {
		t.Error("a caller with an old snapshot does not notify a taker that sleeps")
	}
}

// Nobody hears the NOTIFY: a taker that sleeps finds what is new by itself, and not only because Postgres ends its
// session when that has asked nothing for long.
func TestAMissedNotificationCostsAPoll(t *testing.T) {
	r := mustRig(t)
	s := mustService(t, r.url)
	session := func() int {
		return mustCount(t, r.store, `SELECT DISTINCT pid FROM pg_locks
			WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
			  AND classid = 'waybill.outbox'::regclass::oid AND granted`)
	}
	mustSleep(t, r.store)
	pid := session()
	eventually(t, patience, "it has looked once more, as it does when it has said that it sleeps", func() bool {
		return mustCount(t, r.store, `SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND state = 'idle' AND query LIKE '%was not read before%'`, pid) == 1
	})
	mustExec(t, r.store.pool, `SELECT waybill.outbox_sleep(65535, false)`) // so that nobody notifies
	s.mustEmit(t, testCloudEvent("/s", "one"))
	awaitTaken(t, r.store)
	assertStored(t, r.store, []string{"one"})
	if now := session(); now != pid {
		t.Errorf("session %d slept, and %d found what was new", pid, now)
	}
}

// Postgres is killed while rows wait, are taken, and are committed.
func TestTheOutboxOutlivesPostgres(t *testing.T) {
	cluster := pgtest.NewCluster(t)
	if err := Migrate(t.Context(), cluster.URL("postgres"), testSpec); err != nil {
		t.Fatal(err)
	}
	r := mustRigAt(t, cluster.URL("postgres"))
	var want []string
	for round := range 3 {
		for i := range 20 {
			id := fmt.Sprintf("%d-%d", round, i)
			conn, err := pgx.Connect(t.Context(), cluster.URL("postgres"))
			if err != nil {
				t.Fatal(err)
			}
			if err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error { return EmitTx(t.Context(), tx, testCloudEvent("/s", id)) }); err != nil {
				t.Fatal(err)
			}
			want = append(want, id)
			if err := conn.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(cluster.Kill(), cluster.Start(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, patience, "everything is stored", func() bool {
		var n int
		return r.store.pool.QueryRow(t.Context(), `SELECT count(*) FROM waybill.events`).Scan(&n) == nil && n == len(want)
	})
	if got := storedIDs(t, r.store)["/s"]; !slices.Equal(got, want) {
		t.Fatalf("stored %v, want %v", got, want)
	}
}

// Invariant 12: what was read while an earlier unit was under way is not handed over when that one fails.
func TestWhatComesLaterWaitsForWhatFailed(t *testing.T) {
	r := mustRig(t)
	r.stop()
	service := mustService(t, r.url)
	in, _ := r.mustIngesterAt(t, r.url, leaveOutbox)
	if err := in.Accept(t.Context(), []Event{mustEvent(t, "/s", "test.event", "first")}); err != nil {
		t.Fatal(err)
	}
	release := mustHoldHeads(t, r.store)
	s := r.mustBeliever(t, in)
	service.mustEmit(t, testCloudEvent("/s", "a"))
	if err := s.round(t.Context()); err != nil || s.flying == nil {
		t.Fatal(s.flying, err)
	}
	mustWaitForALock(t, r.store)
	service.mustEmit(t, testCloudEvent("/s", "b"))
	second := make(chan error)
	go func() { second <- s.round(t.Context()) }() // reads b, and waits for the answer to a
	mustExec(t, r.store.pool, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`)
	if err := <-second; err != nil {
		t.Fatal(err)
	}
	if s.flying != nil {
		t.Fatalf("%d rows were handed over before those that failed", len(s.flying.keys))
	}
	release()
	for range 3 {
		if err := s.round(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.land()
	}
	if got := storedIDs(t, r.store)["/s"]; !slices.Equal(got, []string{"first", "a", "b"}) {
		t.Fatalf("stored %v", got)
	}
}

// An emitter takes from the outbox where it is told to, and says so; else it does not.
func TestAnEmitterTakesFromTheOutbox(t *testing.T) {
	r := mustRig(t)
	r.stop()
	r.mustEmitter(t, nil)
	service := mustService(t, r.url)
	service.mustEmit(t, testCloudEvent("/s", "a"))
	time.Sleep(300 * time.Millisecond)
	if n := mustCount(t, r.store, `SELECT count(*) FROM waybill.outbox`); n != 1 {
		t.Fatal("an emitter that was not told to has taken a row")
	}
	_, stop := r.mustEmitter(t, func(c *EmitterConfig) { c.Ingester.Outbox.Take = true })
	awaitTaken(t, r.store)
	service.mustEmit(t, testCloudEvent("/s", "b"))
	stop()
	left := mustCount(t, r.store, `SELECT count(*) FROM waybill.outbox`)
	if got := r.stored(t, "/s"); len(got)+left != 2 || got[0] != "a" {
		t.Fatalf("stored %v, and %d rows wait", got, left)
	}
}

// Shards are given back once what was taken from them is published, so that what the next taker publishes does
// not come before it: when they are shared out anew, and when the ingest stops.
func TestShardsAreGivenBackWhenAllIsPublished(t *testing.T) {
	for _, stops := range []bool{false, true} {
		t.Run(fmt.Sprint("stops ", stops), func(t *testing.T) {
			r := mustPatientRig(t)
			service := mustService(t, r.url)
			eventually(t, patience, "it has all shards", func() bool { n, _ := r.in.taker.state(); return n == outboxShards })
			r.nats.Stop()
			service.mustEmit(t, testCloudEvent("/s", "a"))
			eventually(t, patience, "it is committed", func() bool { return len(storedIDs(t, r.store)["/s"]) == 1 })
			next, _ := r.mustIngesterAt(t, r.url, nil)
			stopped := make(chan struct{})
			if stops {
				go func() { defer close(stopped); r.stop() }()
			} else {
				close(stopped)
			}
			time.Sleep(3 * time.Second) // several looks of each at its share
			if n, _ := next.taker.state(); n > 0 {
				t.Errorf("%d shards were given away before what was taken from them was published", n)
			}
			if err := r.nats.Start(); err != nil {
				t.Fatal(err)
			}
			<-stopped
			eventually(t, patience, "the other has its share", func() bool { n, _ := next.taker.state(); return n >= outboxShards/2 })
			service.mustEmit(t, testCloudEvent("/s", "b"))
			r.assertInOrder(t, 2)
		})
	}
}

// A taker that stands still loses its session, and so its shards.
func TestATakerMayNotStandStill(t *testing.T) {
	conn, err := mustStore(t).connectOutbox(t.Context(), patience)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	var limit string
	if err := conn.QueryRow(t.Context(), `SHOW idle_session_timeout`).Scan(&limit); err != nil || limit != takerStalls.String() {
		t.Fatalf("it may stand still for %s (%v), want %v", limit, err, takerStalls)
	}
}
