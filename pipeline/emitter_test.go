package pipeline

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/internal/pgtest"
	"github.com/waybillhq/waybill/test/faults/proxy"
)

// testEmitterConfig has all the time that a loaded machine takes.
func testEmitterConfig(t testing.TB, databaseURL, natsURL string) EmitterConfig {
	t.Helper()
	c := DefaultEmitterConfig(databaseURL, natsURL)
	c.Store.LockTimeout, c.Store.StatementTimeout, c.Store.IdleInTransactionTimeout = patience, patience, patience
	c.Ingester.FlushTimeout, c.Ingester.StopTimeout = patience, patience
	c.Logger = testLog(t)
	return c
}

// mustNewEmitter returns an emitter that does not run yet.
func (r *rig) mustNewEmitter(t testing.TB, change func(*EmitterConfig)) *Emitter {
	t.Helper()
	c := testEmitterConfig(t, r.url, r.nats.URL())
	if change != nil {
		change(&c)
	}
	e, err := NewEmitter(c)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// mustEmitter returns an emitter that takes events.
func (r *rig) mustEmitter(t testing.TB, change func(*EmitterConfig)) (e *Emitter, stop func()) {
	t.Helper()
	e = r.mustNewEmitter(t, change)
	stop = mustRun(t, e.Run)
	mustBeReady(t, e)
	return e, stop
}

func mustBeReady(t testing.TB, e *Emitter) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := e.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
}

// emitted is an event of a source; those of one source are in order.
func emitted(source, id string) CloudEvent {
	return CloudEvent{Source: source, Type: "t", ID: id, Data: TextData("data of " + id)}
}

// stored returns the ids of a source's events in the order of their seqnum.
func (r *rig) stored(t testing.TB, source string) []string {
	t.Helper()
	rows, err := r.store.pool.Query(t.Context(), `SELECT event_id FROM waybill.events WHERE source = $1 ORDER BY seqnum`, source)
	if err != nil {
		t.Fatal(err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return ids
}

// Emit returns after the commit, and events go the way of all others, at the end of which they
// are settled.
func TestEmittedEventsAreDelivered(t *testing.T) {
	r := mustRig(t)
	r.mustJanitor(t, nil)
	e, _ := r.mustEmitter(t, nil)
	lane := laneEvent(t, "1")
	for i := range 3 {
		if err := e.Emit(t.Context(), CloudEvent{Source: lane.Source, Type: lane.Type, Data: JSONData(i)}); err != nil {
			t.Fatal(err)
		}
		if n := r.pending(t); n != i+1 {
			t.Fatalf("%d events are stored after %d were emitted", n, i+1)
		}
	}
	r.deliverAll(t, 3)
	eventually(t, patience, "they are settled", func() bool { return r.pending(t) == 0 })
}

// Emit does not return before the commit, nor hold its caller when the caller's time is up.
func TestEmitReturnsAfterTheCommit(t *testing.T) {
	r := mustRig(t)
	e, _ := r.mustEmitter(t, nil)
	if err := e.Emit(t.Context(), emitted("/s", "1")); err != nil {
		t.Fatal(err)
	}
	release := mustHoldHeads(t, r.store)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := e.Emit(ctx, emitted("/s", "2")); !errors.Is(err, ErrOutcomeUnknown) || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("before the commit: %v, want an unknown outcome and the deadline", err)
	}
	done := make(chan error, 1)
	go func() { done <- e.EmitBatch(t.Context(), emitted("/s", "3"), emitted("/s", "4")) }()
	select {
	case err := <-done:
		t.Fatalf("answered %v before the commit", err)
	case <-time.After(300 * time.Millisecond):
	}
	release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if ids := r.stored(t, "/s"); !slices.Equal(ids, []string{"1", "2", "3", "4"}) {
		t.Fatalf("stored %v", ids)
	}
}

// A batch is one transaction, larger than a flush as it may be; one bad event keeps all out.
func TestEmitBatchIsAtomic(t *testing.T) {
	r := mustRig(t)
	e, _ := r.mustEmitter(t, func(c *EmitterConfig) { c.Ingester.FlushEvents = 1 })
	var events []CloudEvent
	for i := range 20 {
		events = append(events, emitted(fmt.Sprint("/s/", i), "1"))
	}
	bad := append(slices.Clone(events), CloudEvent{Source: "/s/bad"})
	var fault *InvalidEventError
	if err := e.EmitBatch(t.Context(), bad...); !errors.As(err, &fault) || fault.Attribute != "type" || !strings.Contains(err.Error(), "event 21 of 21") {
		t.Fatalf("with an invalid event: %v", err)
	}
	if n := r.pending(t); n != 0 {
		t.Fatalf("%d events of a batch with an invalid one are stored", n)
	}
	if err := e.EmitBatch(t.Context(), events...); err != nil {
		t.Fatal(err)
	}
	if n, transactions := r.pending(t), mustCount(t, r.store, `SELECT count(DISTINCT xmin::text) FROM waybill.events`); n != 20 || transactions != 1 {
		t.Fatalf("%d events in %d transactions", n, transactions)
	}
	if err := e.EmitBatch(t.Context()); err != nil {
		t.Fatalf("no events: %v", err)
	}
}

// Before Run and after it, and with a context that has ended, all calls say so, and done is
// called once.
func TestEmitOutsideOfRun(t *testing.T) {
	r := mustRig(t)
	e := r.mustNewEmitter(t, nil)
	emitsFail := func(when string, ctx context.Context, want ...error) {
		t.Helper()
		var answers []error
		e.EmitAsync(ctx, emitted("/s", "1"), func(err error) { answers = append(answers, err) })
		if len(answers) != 1 {
			t.Fatalf("%s done was called %d times", when, len(answers))
		}
		answers = append(answers, e.Emit(ctx, emitted("/s", "1")), e.EmitBatch(ctx, emitted("/s", "1"), emitted("/s", "2")))
		for i, err := range answers {
			for _, kind := range want {
				if !errors.Is(err, kind) {
					t.Errorf("%s answer %d is %v, want %v", when, i, err, kind)
				}
			}
		}
	}
	emitsFail("before Run", t.Context(), ErrNotRunning, ErrUnavailable)
	if err := e.Health(); !errors.Is(err, ErrNotRunning) {
		t.Errorf("before Run the health is %v", err)
	}
	waited := make(chan error, 1)
	go func() { waited <- e.WaitReady(t.Context()) }()
	stop := mustRun(t, e.Run)
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	if err := e.Run(t.Context()); !errors.Is(err, ErrRunTwice) {
		t.Errorf("a second Run is %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	emitsFail("after the context ended", ended, context.Canceled)
	if err := e.Emit(t.Context(), emitted("/s", "3")); err != nil {
		t.Fatal(err)
	}
	stop()
	emitsFail("after the stop", t.Context(), ErrStopping, ErrUnavailable)
	if err := e.Run(t.Context()); !errors.Is(err, ErrRunTwice) {
		t.Errorf("a Run after the stop is %v", err)
	}
	if err := e.WaitReady(t.Context()); !errors.Is(err, ErrStopping) {
		t.Errorf("after the stop WaitReady is %v", err)
	}
	var health *HealthError
	if err := e.Health(); !errors.As(err, &health) || health.Ready || !errors.Is(err, ErrStopping) {
		t.Errorf("after the stop the health is %v", err)
	}
	if ids := r.stored(t, "/s"); !slices.Equal(ids, []string{"3"}) {
		t.Errorf("stored %v", ids)
	}
}

func TestEmitterSettings(t *testing.T) {
	if _, err := NewEmitter(DefaultEmitterConfig("postgres://u@127.0.0.1/db", "127.0.0.1:4222, nats://u:p@other:4222")); err != nil {
		t.Fatal(err)
	}
	for text, change := range map[string]func(*EmitterConfig){
		"database url: is empty":             func(c *EmitterConfig) { c.Store.URL = "" },
		"database url: cannot be parsed":     func(c *EmitterConfig) { c.Store.URL = "postgres://secret:x y@[" },
		"nats url: is empty":                 func(c *EmitterConfig) { c.NATSURL = "" },
		"nats url: is":                       func(c *EmitterConfig) { c.NATSURL = "nats://a,nats://" },
		"nats url: the scheme http":          func(c *EmitterConfig) { c.NATSURL = "http://secret@a:4222" },
		"lanes: -1":                          func(c *EmitterConfig) { c.Lanes = -1 },
		"process id":                         func(c *EmitterConfig) { c.ID = "a b" },
		"max event bytes: 0":                 func(c *EmitterConfig) { c.MaxEventBytes = 0 },
		"async events: 0":                    func(c *EmitterConfig) { c.AsyncEvents = 0 },
		"logger: is nil":                     func(c *EmitterConfig) { c.Logger = nil },
		"dedupe attribute":                   func(c *EmitterConfig) { c.DedupeAttribute = "A" },
		"flush and stop timeouts":            func(c *EmitterConfig) { c.Ingester.StopTimeout = 0 },
		"queue bytes: 1048576 and 1000":      func(c *EmitterConfig) { c.Ingester.QueueBytes = 1000 },
		"publish bytes: 1048576 and 1048576": func(c *EmitterConfig) { c.Ingester.PublishBytes = 1 << 20 },
		"flush timeout and the store's lock timeout: 1s and 3s": func(c *EmitterConfig) { c.Ingester.FlushTimeout = time.Second },
		"set the emitter's Meter instead":                       func(c *EmitterConfig) { c.Store.Meter = testMeter },
	} {
		c := DefaultEmitterConfig("postgres://u@127.0.0.1/db", "nats://127.0.0.1:4222")
		change(&c)
		if _, err := NewEmitter(c); err == nil || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: got %v", text, err)
		}
	}
	a, b := DefaultEmitterConfig("", ""), DefaultEmitterConfig("", "")
	if a.ID == b.ID {
		t.Errorf("two emitters have the id %s", a.ID)
	}
}

// Until the database is migrated an emitter waits and says so, and then goes to work.
func TestEmitterWaitsForMigration(t *testing.T) {
	databaseURL, n := pgtest.NewEmpty(t), mustNATS(t)
	e, err := NewEmitter(testEmitterConfig(t, databaseURL, n.URL()))
	if err != nil {
		t.Fatal(err)
	}
	mustRun(t, e.Run)
	eventually(t, patience, "it says that the database is not migrated", func() bool { return errors.Is(e.Health(), ErrNotMigrated) })
	var health *HealthError
	if err := e.Health(); !errors.As(err, &health) || health.Ready || !strings.Contains(err.Error(), "waybill migrate") {
		t.Errorf("the health is %v", err)
	}
	if err := e.Emit(t.Context(), emitted("/s", "1")); !errors.Is(err, ErrNotMigrated) || !errors.Is(err, ErrUnavailable) {
		t.Errorf("Emit is %v", err)
	}
	soon, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := e.WaitReady(soon); !errors.Is(err, ErrNotMigrated) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("WaitReady is %v", err)
	}
	if err := Migrate(t.Context(), databaseURL, testSpec); err != nil {
		t.Fatal(err)
	}
	mustBeReady(t, e)
	if err := e.Emit(t.Context(), emitted("/s", "1")); err != nil {
		t.Fatal(err)
	}
}

// A Postgres that does not answer is waited for, and one that goes away is no end.
func TestEmitterWaitsForPostgres(t *testing.T) {
	r := mustRig(t)
	p, through := mustProxy(t, r.url, nil)
	p.Set(proxy.Fault{Mode: proxy.Cut})
	r.url = through
	e := r.mustNewEmitter(t, nil)
	mustRun(t, e.Run)
	eventually(t, patience, "it says what it waits for", func() bool {
		err := e.Health()
		return errors.Is(err, ErrUnavailable) && strings.Contains(err.Error(), "waiting for the database")
	})
	p.Set(proxy.Fault{})
	mustBeReady(t, e)
	if err := e.Emit(t.Context(), emitted("/s", "1")); err != nil {
		t.Fatal(err)
	}
	p.Set(proxy.Fault{Mode: proxy.Cut})
	if err := e.Emit(t.Context(), emitted("/s", "2")); !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrOutcomeUnknown) {
		t.Fatalf("without Postgres: %v", err)
	}
	var health *HealthError
	if err := e.Health(); !errors.As(err, &health) || health.Ready || !strings.Contains(err.Error(), "commits fail since") {
		t.Errorf("without Postgres the health is %v", err)
	}
	p.Set(proxy.Fault{})
	eventually(t, patience, "it emits again", func() bool { return e.Emit(t.Context(), emitted("/s", "3")) == nil })
	eventually(t, patience, "it is ready again", func() bool { return !errors.As(e.Health(), &health) || health.Ready })
}

// NATS is no obstacle to emitting, and Health says that it is away.
func TestEmitWithoutNATS(t *testing.T) {
	r := mustRig(t)
	r.nats.Stop()
	e, _ := r.mustEmitter(t, nil)
	lane := laneEvent(t, "1")
	if err := e.Emit(t.Context(), CloudEvent{Source: lane.Source, Type: lane.Type}); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "it says that NATS is away, and which servers it has tried", func() bool {
		var health *HealthError
		return errors.As(e.Health(), &health) && health.Ready && slices.ContainsFunc(health.Degraded, func(p Problem) bool {
			return p.Check == "nats" && strings.HasPrefix("nats://"+strings.TrimPrefix(p.Problem, "not connected to "), r.nats.URL())
		})
	})
	eventually(t, patience, "it says the same of the queue", func() bool {
		return strings.Contains(fmt.Sprint(e.Health()), "queue: the queue is not ready: stream EVENTS: NATS is not connected")
	})
	if err := r.nats.Start(); err != nil {
		t.Fatal(err)
	}
	r.mustJanitor(t, nil)
	r.deliverAll(t, 1)
}

// mustBeatAs says that a janitor of a database is alive.
func (r *rig) mustBeatAs(t testing.TB, id, database string) (stop func()) {
	t.Helper()
	return mustRun(t, func(ctx context.Context) error {
		return RunHeartbeat(ctx, r.queue, testLog(t), func() Heartbeat {
			h := NewHeartbeat(KindJanitor, id, "test")
			h.Database = database
			return h
		})
	})
}

// Without a janitor on its database an emitter emits and says so; one on another database is
// none.
func TestEmitterMissesTheJanitor(t *testing.T) {
	t.Parallel()
	r := mustRig(t)
	e, _ := r.mustEmitter(t, nil)
	degradedBy := func(text string) func() bool {
		return func() bool {
			var health *HealthError
			err := e.Health()
			return errors.As(err, &health) && health.Ready && errors.Is(err, ErrNoJanitor) && strings.Contains(err.Error(), text)
		}
	}
	healthy := func() bool { return e.Health() == nil }
	eventually(t, patience, "it misses a janitor", degradedBy("start one"))
	if err := e.Emit(t.Context(), emitted("/s", "1")); err != nil {
		t.Fatal(err)
	}
	stop := r.mustBeatAs(t, "stranger", mustStore(t).Database())
	eventually(t, patience, "it sees that the janitor is another database's", degradedBy("stranger is of another one"))
	stop()
	stop = r.mustBeatAs(t, "ours", r.store.Database())
	eventually(t, patience, "it sees the janitor", healthy)
	stop()
	eventually(t, patience, "it misses the janitor again", degradedBy("start one"))
	r.mustBeatAs(t, "older", "")
	eventually(t, patience, "it sees a janitor that does not say", healthy)
}

// The identity is that of the database and not of the connection.
func TestDatabaseIdentity(t *testing.T) {
	r := mustRig(t)
	again := mustStoreAt(t, r.url)
	if a, b, other := r.store.Database(), again.Database(), mustStore(t).Database(); a == "" || a != b || a == other {
		t.Errorf("one database is %q and %q, another %q", a, b, other)
	}
}

// An emitter is alive for the others, and gone when it has stopped; and it says what it misses.
func TestEmitterHasAHeartbeat(t *testing.T) {
	t.Parallel()
	r := mustRig(t)
	e, stop := r.mustEmitter(t, func(c *EmitterConfig) { c.ID, c.Version = "node-1", "v3" })
	live := func() []Heartbeat {
		alive, err := LiveProcesses(t.Context(), r.queue, KindEmitter)
		if err != nil {
			t.Fatal(err)
		}
		return alive
	}
	eventually(t, patience, "it is alive, and misses a janitor", func() bool {
		l := live()
		return len(l) == 1 && l[0].ID == "node-1" && l[0].Version == "v3" && l[0].Database == r.store.Database() && strings.Contains(l[0].Problem, "no janitor")
	})
	if err := e.Emit(t.Context(), emitted("/s", "1")); err != nil {
		t.Fatal(err)
	}
	stop()
	if l := live(); len(l) != 0 {
		t.Errorf("after the stop %v is alive", l)
	}
}

// What can never work ends Run with the reason, which later calls repeat.
func TestEmitterThatDoesNotFit(t *testing.T) {
	r := mustRig(t)
	for text, e := range map[string]*Emitter{
		"max_payload": r.mustNewEmitter(t, func(c *EmitterConfig) {
			c.MaxEventBytes = 8 << 20
		}),
		"lanes: 5; the pipeline has 4: set Lanes": r.mustNewEmitter(t, func(c *EmitterConfig) { c.Lanes = 5 }),
		"grant the role what docs/operations.md names": r.mustNewEmitter(t, func(c *EmitterConfig) {
			c.Store.URL = mustAsCaller(t, r.url)
		}),
	} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		err := e.Run(ctx)
		cancel()
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: Run is %v", text, err)
		}
		if err := e.Emit(t.Context(), emitted("/s", "1")); !errors.Is(err, ErrStopping) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: Emit is %v", text, err)
		}
	}
}

// mustAsCaller is the URL of a database with sessions that may do no more than who uses the outbox.
func mustAsCaller(t *testing.T, database string) string {
	t.Helper()
	s := mustService(t, database)
	role := "waybill_test_" + strings.ToLower(rand.Text()[:16])
	mustExec(t, s.pool, `CREATE ROLE `+role+`; GRANT USAGE ON SCHEMA waybill TO `+role)
	t.Cleanup(func() {
		if _, err := s.pool.Exec(context.Background(), `DROP OWNED BY `+role+`; DROP ROLE `+role); err != nil {
			t.Error(err)
		}
	})
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	query := u.Query()
	query.Set("role", role)
	u.RawQuery = query.Encode()
	return u.String()
}

// Several emitters, in several processes as well, share a pipeline with an ingest.
func TestManyEmittersOnOneDatabase(t *testing.T) {
	url := mustDedupeDatabase(t, time.Hour)
	r := mustRigAt(t, url)
	var emitters []*Emitter
	for range 3 {
		e, _ := r.mustEmitter(t, nil)
		emitters = append(emitters, e)
	}
	const writers, each, keys = 32, 40, 5
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				event := emitted(fmt.Sprint("/s/", (w+i)%keys), fmt.Sprintf("%d-%d", w, i))
				// The same event by two ways in is one event.
				err := errors.Join(emitters[w%3].Emit(t.Context(), event), emitters[(w+1)%3].Emit(t.Context(), event))
				if w%4 == 0 {
					err = errors.Join(err, r.in.Accept(t.Context(), []Event{mustEvent(t, event.Source, event.Type, event.ID)}))
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := r.pending(t); n != writers*each {
		t.Errorf("%d events are stored of %d", n, writers*each)
	}
	assertDense(t, r.store)
}
