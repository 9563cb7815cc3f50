package pipeline

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/internal/pgtest"
	"github.com/waybillhq/waybill/test/faults/proxy"
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
	url := mustDedupeDatabase(t, time.Hour)
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
	const writers, rounds, total = 64, 100, 5000
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
	t.Parallel()
	url := mustDedupeDatabase(t, 5*time.Second)
	a, b := mustDeduper(t, url), mustDeduper(t, url)
	events := mustEvents(t, 3, 1)
	if mustAppendOnce(t, a, events) != 3 || mustAppendOnce(t, b, events) != 0 {
		t.Fatal("not stored, or stored again inside the window")
	}
	eventually(t, patience, "the events are stored again", func() bool { return mustAppendOnce(t, b, events) == 3 })
	eventually(t, patience, "the log is empty", func() bool {
		if err := a.store.ForgetAccepted(t.Context()); err != nil {
			t.Fatal(err)
		}
		return mustCount(t, a.store, `SELECT count(*) FROM waybill.dedupe_log`) == 0
	})
}

// A janitor that was paused after it found a slot to be old may go on when that slot is the current
// one: what was accepted just now is remembered all the same.
func TestForgettingLooksAgain(t *testing.T) {
	url := mustDedupeDatabase(t, time.Hour)
	d := mustDeduper(t, url)
	events := mustEvents(t, 3, 1)
	mustAppendOnce(t, d, events)
	var turn int64
	if err := d.store.pool.QueryRow(t.Context(), turnSQL).Scan(&turn); err != nil {
		t.Fatal(err)
	}
	for slot := range int16(3) {
		if err := d.store.forgetSlot(t.Context(), oldSlot{slot, turn - 1}); err != nil {
			t.Fatal(err)
		}
	}
	if stored := mustAppendOnce(t, mustDeduper(t, url), events); stored != 0 {
		t.Errorf("another ingest stored %d of the events again", stored)
	}
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
	eventually(t, patience, "the reader is in the way", func() bool {
		began := time.Now()
		err := d.store.ForgetAccepted(t.Context())
		if took := time.Since(began); took > patience/4 {
			t.Fatalf("waited %v for a reader", took)
		}
		return errors.Is(err, errLogInUse)
	})
	mustAppendOnce(t, d, []Event{mustEvent(t, "/s", "t", "y")})
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "the log is empty", func() bool {
		if err := d.store.ForgetAccepted(t.Context()); err != nil {
			t.Fatal(err)
		}
		return mustCount(t, d.store, `SELECT count(*) FROM waybill.dedupe_log`) == 0
	})
}

// mustProxied opens a deduper whose connections go through a proxy.
func mustProxied(t *testing.T, direct string, response proxy.Response) (*deduper, *proxy.Proxy) {
	t.Helper()
	p, through := mustProxy(t, direct, response)
	return mustDeduper(t, through), p
}

// mustProxy runs a proxy before the server of a URL, and returns the URL that leads through it.
func mustProxy(t *testing.T, direct string, response proxy.Response) (p *proxy.Proxy, through string) {
	t.Helper()
	u, err := url.Parse(direct)
	if err != nil {
		t.Fatal(err)
	}
	if p, err = proxy.New(u.Host, response); err != nil {
		t.Fatal(err)
	}
	mustRun(t, p.Run)
	u.Host = p.Addr()
	return p, u.String()
}

// commitDone is how the answer to a transaction ends, with a COMMIT or without.
var commitDone = regexp.MustCompile(`(?:COMMIT|SELECT \d+)\x00(Z\x00\x00\x00\x05I)`)

// committed finds the word that a transaction is committed. All that comes before it is no
// promise.
func committed(data []byte) int {
	if at := commitDone.FindSubmatchIndex(data); at != nil {
		return at[2]
	}
	return -1
}

// Invariant 11: a producer whose answer was lost sends its events again, to the same ingest
// or another one.
func TestRetryAfterALostAnswer(t *testing.T) {
	for _, n := range []int{1, smallFlush + 1} {
		for _, same := range []bool{true, false} {
			t.Run(fmt.Sprintf("%d same %v", n, same), func(t *testing.T) {
				direct := mustDedupeDatabase(t, time.Minute)
				a, way := mustProxied(t, direct, committed)
				b := mustDeduper(t, direct)
				for i, d := range []*deduper{a, b, a} {
					mustAppendOnce(t, d, []Event{mustEvent(t, "/other", "t", fmt.Sprint("other-", i))})
				}
				events := mustEvents(t, n, 3)
				way.Set(proxy.Fault{Mode: proxy.LoseResponse, Every: 1})
				if _, _, err := a.appendOnce(t.Context(), events, 0, 1<<20); !errors.Is(err, ErrOutcomeUnknown) {
					t.Fatalf("the error is %v, want that the outcome is unknown", err)
				}
				way.Set(proxy.Fault{Mode: proxy.Pass})
				retry := b
				if same {
					retry = a
				}
				mustAppendOnce(t, retry, events)
				assertOnce(t, b.store, n+3)
			})
		}
	}
}

// Invariants 1 and 11: the retry of an event whose COMMIT came late, or never, is answered for
// by what is committed, and by nothing else.
func TestRetryBeforeTheCommit(t *testing.T) {
	for _, test := range []struct {
		name string
		then proxy.Mode // what becomes of the COMMIT that is held up
	}{{"that comes late", proxy.Pass}, {"that never comes", proxy.Cut}} {
		t.Run(test.name, func(t *testing.T) {
			direct := mustDedupeDatabase(t, time.Minute)
			hold, held := make(chan struct{}, 1), make(chan struct{})
			var d *deduper
			var way *proxy.Proxy
			d, way = mustProxied(t, direct, func([]byte) int {
				select {
				case <-hold: // the answer to the first round trip; the COMMIT goes nowhere
					way.Set(proxy.Fault{Mode: proxy.BlackHole, Refuse: true}) // nor does pgx's request to cancel
					close(held)
				default:
				}
				return -1
			})
			d.refused, d.pause = time.Now(), time.Hour // in two round trips
			for i := range 3 {
				mustAppendOnce(t, d, []Event{mustEvent(t, "/other", "t", fmt.Sprint("other-", i))})
			}
			events := mustEvents(t, 1, 1)
			way.Set(proxy.Fault{Mode: proxy.LoseResponse, Every: 1})
			hold <- struct{}{}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go func() {
				<-held
				pause(ctx, time.Second) // in which the COMMIT comes to nobody
				cancel()
			}()
			if _, _, err := d.appendOnce(ctx, events, 0, 1<<20); !errors.Is(err, ErrOutcomeUnknown) {
				t.Fatalf("the error is %v, want that the outcome is unknown", err)
			}
			d.store = mustStoreAt(t, direct)
			retried := make(chan error, 1)
			go func() {
				_, _, err := d.appendOnce(t.Context(), events, 0, 1<<20)
				retried <- err
			}()
			mustWaitForALock(t, d.store)
			eventually(t, patience, "the request to cancel is lost", func() bool { return way.Hits()[proxy.Refused] > 0 })
			way.Set(proxy.Fault{Mode: test.then})
			if err := <-retried; err != nil {
				t.Fatal(err)
			}
			assertOnce(t, d.store, 4)
		})
	}
}

// mustWaitForALock returns when somebody waits for a row that another transaction holds.
func mustWaitForALock(t *testing.T, s *Store) {
	t.Helper()
	eventually(t, patience, "somebody waits for a lock", func() bool {
		return mustCount(t, s, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`) > 0
	})
}

// mustBeginAs begins a transaction that locks an event's head and logs its fingerprint, as
// the one of another ingest does.
func mustBeginAs(t *testing.T, s *Store, e Event) pgx.Tx {
	t.Helper()
	tx, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(context.Background()) }) // of no interest after its end
	if _, err := tx.Exec(t.Context(), `UPDATE waybill.heads SET version = version + 1 WHERE page = (SELECT id / 32 FROM waybill.keys WHERE source = $1)`, e.Source); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `INSERT INTO waybill.dedupe_log (slot, events, fingerprints) VALUES (0, 1, $1)`, e.Fingerprint[:]); err != nil {
		t.Fatal(err)
	}
	return tx
}

// Invariant 11: what another ingest commits while this one waits for a head is seen.
func TestTheLogIsReadAfterTheHeadsAreLocked(t *testing.T) {
	for trips, pause := range map[string]time.Duration{"one round trip": 0, "two round trips": time.Hour} {
		t.Run(trips, func(t *testing.T) {
			url := mustDedupeDatabase(t, time.Minute)
			a, b := mustDeduper(t, url), mustDeduper(t, url)
			a.refused, a.pause = time.Now(), pause
			mustAppendOnce(t, a, mustEvents(t, 3, 1))
			e := mustEvent(t, "/source/0", "test.event", "late")
			tx := mustBeginAs(t, b.store, e)
			stored := make(chan int)
			go func() {
				_, again, err := a.appendOnce(t.Context(), []Event{e}, 0, 1<<20)
				if err != nil {
					t.Error(err)
				}
				stored <- 1 - again.log
			}()
			mustWaitForALock(t, b.store)
			if err := tx.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			if n := <-stored; n != 0 {
				t.Fatal("an event was stored that another ingest had accepted")
			}
		})
	}
}

// Invariant 11: a transaction that was under way while many snapshots were taken, and younger
// ones were committed, is seen once it is committed.
func TestALongTransactionIsSeen(t *testing.T) {
	url := mustDedupeDatabase(t, time.Minute)
	a, b := mustDeduper(t, url), mustDeduper(t, url)
	mustAppendOnce(t, a, mustEvents(t, 3, 1))
	mustAddKeys(t, a.store, mustEvents(t, 32, 32)) // so that the key below is on another page
	e := mustEvent(t, "/source/0", "test.event", "late")
	tx := mustBeginAs(t, b.store, e)
	for i := range 5 {
		for _, d := range []*deduper{a, mustDeduper(t, url)} {
			mustAppendOnce(t, d, []Event{mustEvent(t, "/other", "t", fmt.Sprint(i))})
		}
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if mustAppendOnce(t, a, []Event{e}) != 0 {
		t.Fatal("an event was stored that another ingest had accepted")
	}
}

// A server that crashed has lost nothing of the log; one that was restored has, and then an
// event that it lacks is stored, even if the ingest remembers having accepted it.
func TestTheServerIsAnother(t *testing.T) {
	cluster := pgtest.NewCluster(t)
	spec := testSpec
	spec.DedupeWindow = time.Hour
	if err := Migrate(t.Context(), cluster.URL("postgres"), spec); err != nil {
		t.Fatal(err)
	}
	d := mustDeduper(t, cluster.URL("postgres"))
	events := mustEvents(t, 3, 1)
	mustAppendOnce(t, d, events)
	for _, restored := range []bool{false, true} {
		if err := cluster.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := cluster.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := 0
		if restored { // from a backup of before the first event
			conn, err := pgx.Connect(t.Context(), cluster.URL("postgres"))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Exec(t.Context(), `TRUNCATE waybill.events, waybill.batches, waybill.keys, waybill.heads, waybill.dedupe_log`); err != nil {
				t.Fatal(err)
			}
			if err := conn.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			want = 3
		}
		stored := -1
		eventually(t, patience, "the server answers", func() bool {
			_, again, err := d.appendOnce(t.Context(), events, 0, 1<<20)
			stored = len(events) - again.local - again.log
			return err == nil
		})
		if stored != want {
			t.Fatalf("restored %v: stored %d events, want %d", restored, stored, want)
		}
		assertOnce(t, d.store, 3)
	}
}

// An attribute stands in for the id.
func TestAttributeInPlaceOfTheID(t *testing.T) {
	url := mustDedupeDatabase(t, time.Minute)
	d := mustDeduper(t, url)
	event := func(id string, key *pb.CloudEventAttributeValue) Event {
		ce := &pb.CloudEvent{Id: id, Source: "/s", Type: "t", SpecVersion: "1.0", Attributes: map[string]*pb.CloudEventAttributeValue{}}
		if key != nil {
			ce.Attributes["idempotencykey"] = key
		}
		e, err := NewEvent(ce, 1<<10)
		if err != nil {
			t.Fatal(err)
		}
		e.IdentifyBy(ce, "idempotencykey")
		return e
	}
	text := func(s string) *pb.CloudEventAttributeValue {
		return &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeString{CeString: s}}
	}
	number := &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeInteger{CeInteger: 7}}
	for i, test := range []struct {
		event  Event
		stored int
	}{
		{event("a", text("7")), 1},
		{event("b", text("7")), 0}, // another try, with another id
		{event("c", number), 0},
		{event("a", text("8")), 1}, // another event, with the same id
		{event("d", nil), 1},
		{event("d", nil), 0},
		{event("e", text("")), 1},
		{event("7", nil), 1}, // an id is no attribute
	} {
		if stored := mustAppendOnce(t, d, []Event{test.event}); stored != test.stored {
			t.Errorf("event %d: stored %d, want %d", i, stored, test.stored)
		}
	}
}

// An ingest with little memory remembers the newest events, and says for how long.
func TestLittleMemory(t *testing.T) {
	url := mustDedupeDatabase(t, time.Hour)
	a := mustDeduper(t, url)
	small := newDeduper(a.store, minDedupeBytes)
	n := 2*small.set.capacity() + 1000
	events := make([]Event, n)
	for i := range events {
		id := fmt.Sprint(i)
		events[i] = Event{Source: "/s", Type: "t", ID: id, Encoded: []byte("x"), Fingerprint: newFingerprint("/s", fingerprintOfID, id)}
	}
	for i := 0; i < n; i += 5000 {
		mustAppendOnce(t, a, events[i:min(i+5000, n)])
	}
	newest := events[n-small.set.capacity()*9/10:]
	if stored := mustAppendOnce(t, small, newest); stored != 0 {
		t.Errorf("%d of the newest %d events were stored again", stored, len(newest))
	}
	if size := small.set.bytes(); size > minDedupeBytes {
		t.Errorf("it takes %d bytes, and may take %d", size, minDedupeBytes)
	}
	if held, covers := small.state(); int(held) > n || covers >= time.Hour || covers <= 0 {
		t.Errorf("it says that it has %d events, of the last %v", held, covers)
	}
}

// Of a log that is much longer than what there is room for, the newest part alone is read: all of it would take longer than a
// statement may, and no ingest could start.
func TestALongLogIsReadAsFarAsThereIsRoom(t *testing.T) {
	url := mustDedupeDatabase(t, 24*time.Hour)
	d := newDeduper(mustStoreAt(t, url), minDedupeBytes)
	newest := mustEvents(t, 10, 2)
	mustExec(t, d.store.pool, `INSERT INTO waybill.dedupe_log (slot, xid, at, events, fingerprints)
		SELECT (floor(extract(epoch FROM now()) / 86400)::bigint % 3)::smallint, (3 + i / 10000)::text::xid8, now() - (3000000 - i) * interval '10 ms', 1,
			decode(substr(md5(i::text), 1, 24), 'hex')
		FROM generate_series(1, 3000000) AS i`)
	mustAppendOnce(t, newDeduper(d.store, minDedupeBytes), newest)
	tx, err := d.store.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	since, err := newestLogged(t.Context(), tx, d.set.capacity())
	if err != nil {
		t.Fatal(err)
	}
	if part, all := mustCountPages(t, tx, loadLogSQL, d.set.capacity(), since), mustCountPages(t, tx, loadLogSQL, d.set.capacity(), "0"); part > all/10 {
		t.Errorf("it reads %d pages of %d", part, all)
	}
	began := time.Now()
	if _, err := tx.Exec(t.Context(), loadLogSQL, d.set.capacity(), "0"); err != nil {
		t.Fatal(err)
	}
	all, part := time.Since(began), time.Hour
	for range 3 { // any of them may have had to wait for the machine
		began = time.Now()
		if err := d.load(t.Context()); err != nil {
			t.Fatal(err)
		}
		part = min(part, time.Since(began))
	}
	t.Logf("reading all %v, the newest part %v", all, part)
	if part > all*2/3 { // under the race detector it is a third, most of which is to take the rows apart
		t.Errorf("to read the newest part takes %v, and all of it %v", part, all)
	}
	if held, covers := d.state(); int(held) < d.set.capacity()*9/10 || covers >= time.Hour || covers <= 0 {
		t.Errorf("it has %d events, of the last %v", held, covers)
	}
	if stored := mustAppendOnce(t, d, newest); stored != 0 {
		t.Errorf("%d of the newest events were stored again", stored)
	}
}

// Rows that were restored from another cluster, whose numbers this one has not reached, are no newer than what was accepted since.
func TestALongLogOfAnotherCluster(t *testing.T) {
	url := mustDedupeDatabase(t, 24*time.Hour)
	d := newDeduper(mustStoreAt(t, url), minDedupeBytes)
	mustExec(t, d.store.pool, fmt.Sprintf(`INSERT INTO waybill.dedupe_log (slot, xid, at, events, fingerprints)
		SELECT (floor(extract(epoch FROM now()) / 86400)::bigint %% 3)::smallint, (1000000000 + i)::text::xid8, now() - interval '1 hour', 6,
			decode(repeat(md5(i::text), 4) || substr(md5(i::text || 'a'), 1, 16), 'hex')
		FROM generate_series(1, %d) AS i`, newestRows+1))
	newest := mustEvents(t, 10, 2)
	mustAppendOnce(t, newDeduper(d.store, minDedupeBytes), newest)
	if err := d.ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range newest {
		if !d.set.has(newest[i].Fingerprint) {
			t.Errorf("event %d, which was accepted a moment ago, is not known after a start", i)
		}
	}
}

// What other ingests log is read while there is nothing to do, and does not pile up.
func TestCatchUp(t *testing.T) {
	url := mustDedupeDatabase(t, time.Minute)
	a, b := mustDeduper(t, url), mustDeduper(t, url)
	mustAppendOnce(t, b, []Event{mustEvent(t, "/s", "t", "x")})
	events := mustEvents(t, 100, 7)
	mustAppendOnce(t, a, events)
	for range 2 {
		b.readAt = b.readAt.Add(-catchUpEvery)
		if err := b.catchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	_, again, err := b.appendOnce(t.Context(), events, 0, 1<<20)
	if err != nil || again.local != 100 {
		t.Fatalf("found %+v, %v; want all 100 without asking", again, err)
	}
	b.readAt = b.readAt.Add(-maxBehind) // it could not read for long: it loads all
	mustAppendOnce(t, a, mustEvents(t, 200, 7))
	if err := b.catchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if held, _ := b.state(); held != 201 {
		t.Fatalf("it has %d events, want 201", held)
	}
}
