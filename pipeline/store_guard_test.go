package pipeline

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/internal/pgtest"
	"github.com/waybillhq/waybill/test/faults/proxy"
)

// mustPrepare appends n events of some keys twice, so that the connection has every statement that n more of as many need:
// with an earlier snapshot in which nothing was in progress, and with another.
func mustPrepare(t *testing.T, d *deduper, n, keys int) {
	t.Helper()
	for _, safe := range []string{"3:3:", "3:4:3"} {
		if err := d.ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		d.safe = safe // of long ago
		events := make([]Event, n)
		for i := range events {
			events[i] = mustEvent(t, "/other", fmt.Sprint("t", i%keys), fmt.Sprint("prepare-", safe, i))
		}
		mustAppendOnce(t, d, events)
	}
}

// mustAppendOthers appends an event a time, of another key than those of the test.
func mustAppendOthers(t *testing.T, d *deduper, n int) {
	t.Helper()
	for range n {
		mustAppendOnce(t, d, []Event{mustEvent(t, "/other", "t", fmt.Sprint("other-", rand.Uint64()))})
	}
}

// mustLog logs fingerprints as another ingest does.
func mustLog(t *testing.T, s *Store, fingerprints []byte) {
	t.Helper()
	if _, err := s.pool.Exec(t.Context(), `INSERT INTO waybill.dedupe_log (slot, events, fingerprints) VALUES (0, octet_length($1::bytea) / 12, $1)`, fingerprints); err != nil {
		t.Fatal(err)
	}
}

// readyForQuery ends the answer to a round trip. Without the state of the transaction, its last byte, it could as well be the end of a
// time in one column and the length of the number of a transaction in the next.
var readyForQuery = regexp.MustCompile(`Z\x00\x00\x00\x05[ITE]`)

// A lone event takes one round trip; of one that another ingest has accepted, Postgres says so.
func TestALoneEventTakesOneRoundTrip(t *testing.T) {
	var trips atomic.Int64
	direct := mustDedupeDatabase(t, time.Minute)
	d, way := mustProxied(t, direct, func(data []byte) int {
		trips.Add(int64(len(readyForQuery.FindAll(data, -1))))
		return -1
	})
	way.Set(proxy.Fault{Mode: proxy.LoseResponse, Every: 1}) // what it finds, which is none
	mustPrepare(t, d, 1, 1)
	var took []int64
	for range 3 { // the pool looks after a connection now and then
		before := trips.Load()
		mustAppendOthers(t, d, 1)
		took = append(took, trips.Load()-before)
	}
	if slices.Min(took) != 1 {
		t.Errorf("lone events took %d round trips, want 1", took)
	}
	other := mustDeduper(t, direct)
	events := mustEvents(t, 1, 1)
	mustAppendOnce(t, other, events)
	if stored := mustAppendOnce(t, d, events); stored != 0 || d.refused.IsZero() {
		t.Errorf("stored %d events that another ingest had accepted, want 0; refused at %v", stored, d.refused)
	}
	assertOnce(t, other.store, 6)
}

// Invariant 11: a flush that comes late, after its retry was stored by another ingest, is rolled
// back by Postgres: nobody is there to decide.
func TestAFlushThatComesAfterItsRetry(t *testing.T) {
	direct := mustDedupeDatabase(t, time.Minute)
	d, way := mustProxied(t, direct, committed)
	other := mustDeduper(t, direct)
	mustPrepare(t, d, smallFlush, 7)
	events := mustEvents(t, smallFlush, 7)
	// Neither does pgx's request to cancel the flush arrive, which may come before it, and end it instead of the guard.
	way.Set(proxy.Fault{Mode: proxy.BlackHole, Refuse: true})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second) // time to send it
	defer cancel()
	if _, _, err := d.appendOnce(ctx, events, 0, 1<<20); !errors.Is(err, ErrOutcomeUnknown) {
		t.Fatalf("the error is %v, want that the outcome is unknown", err)
	}
	if stored := mustAppendOnce(t, other, events); stored != len(events) {
		t.Fatalf("the retry stored %d events, want %d", stored, len(events))
	}
	before := mustCount(t, other.store, rolledBackSQL)
	eventually(t, patience, "the request to cancel is lost", func() bool { return way.Hits()[proxy.Refused] > 0 })
	way.Set(proxy.Fault{Mode: proxy.Pass})
	eventually(t, patience, "the late flush is rolled back", func() bool {
		return mustCount(t, other.store, `SELECT count(*) FROM waybill.events`) > 3*len(events) ||
			mustCount(t, other.store, rolledBackSQL) > before
	})
	assertOnce(t, other.store, 3*len(events))
}

const rolledBackSQL = `SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database()`

// Invariant 11, at the same moment: many writers give the same few events to two ingests, whose
// connections break now and then, each flush in one round trip.
func TestTwoIngestsStoreEachLoneEventOnce(t *testing.T) {
	url := mustDedupeDatabase(t, time.Minute)
	queue := mustRig(t).queue
	var ins []*Ingester
	for range 2 {
		in, err := NewIngester(DefaultIngesterConfig(), mustStoreAt(t, url), queue, testLog(t), testMeter)
		if err != nil {
			t.Fatal(err)
		}
		in.dedupe.pause = 0 // a refusal must not keep others from being needed
		mustRun(t, in.Run)
		ins = append(ins, in)
	}
	const writers, total = 16, 1000
	events := mustEvents(t, total, 5)
	stop := mustRun(t, func(ctx context.Context) error { return killConnections(ctx, url) })
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(11, uint64(w)))
			for from := 0; from < total; {
				n := min(1+random.IntN(3), total-from)
				acceptUntilTold(t, ins, random, events[from:from+n])
				from += n
			}
		})
	}
	wg.Wait()
	stop()
	assertOnce(t, ins[0].store, total)
}

// A flush that may be committed is, where the guard cannot tell: what it took for an event is
// none, or there is too much to look through.
func TestTheGuardErrsOnOneSide(t *testing.T) {
	e := mustEvent(t, "/s", "t", "x")
	shifted := make([]byte, 2*fingerprintBytes)
	copy(shifted[fingerprintBytes/2:], e.Fingerprint[:])
	for name, row := range map[string][]byte{
		"unaligned": shifted,
		"long":      make([]byte, guardBytes/fingerprintBytes*fingerprintBytes+fingerprintBytes),
	} {
		t.Run(name, func(t *testing.T) {
			url := mustDedupeDatabase(t, time.Minute)
			d := mustDeduper(t, url)
			mustAppendOthers(t, d, 1)
			if !d.refused.IsZero() {
				t.Fatal("a flush was refused before anything was logged by others")
			}
			mustLog(t, d.store, row)
			if stored := mustAppendOnce(t, d, []Event{e}); stored != 1 || d.refused.IsZero() {
				t.Errorf("stored %d, refused at %v; want that it was refused, and stored", stored, d.refused)
			}
			mustAppendOthers(t, d, 1) // the same row is read once more
			assertOnce(t, d.store, 3)
		})
	}
}

// A flush in one round trip that meets another server, or another run of it, than its set was
// read from is taken back, and the set is read again.
func TestALoneEventAfterARestart(t *testing.T) {
	cluster := pgtest.NewCluster(t)
	url := cluster.URL("postgres")
	spec := testSpec
	spec.DedupeWindow = time.Minute
	if err := Migrate(t.Context(), url, spec); err != nil {
		t.Fatal(err)
	}
	d := mustDeduper(t, url)
	old := mustEvents(t, 3, 1)
	mustAppendOnce(t, d, old)
	if err := cluster.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cluster.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	// As after a restore of a backup of before the first event.
	if _, err := conn.Exec(t.Context(), `TRUNCATE waybill.events, waybill.batches, waybill.keys, waybill.heads, waybill.dedupe_log`); err != nil {
		t.Fatal(err)
	}
	var done *appended
	var again duplicates
	eventually(t, patience, "the server answers", func() bool {
		done, again, err = d.appendOnce(t.Context(), []Event{mustEvent(t, "/new", "t", "x")}, 0, 1<<20)
		return err == nil
	})
	if len(done.batches) != 1 || again != (duplicates{}) {
		t.Errorf("a new event became %d batches, with %+v; want one, which is published", len(done.batches), again)
	}
	if stored := mustAppendOnce(t, d, old); stored != len(old) {
		t.Errorf("stored %d events that the server lacks, want %d", stored, len(old))
	}
	assertOnce(t, d.store, len(old)+1)
}

// The commit of a flush in one round trip may fail when all of its statements are done.
func TestALoneCommitThatFails(t *testing.T) {
	d := mustDeduper(t, mustDedupeDatabase(t, time.Minute))
	mustAppendOthers(t, d, 3)
	exec := func(sql string) {
		t.Helper()
		if _, err := d.store.pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	exec(`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not now'; END $$`)
	exec(`CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON waybill.batches DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()`)
	events := mustEvents(t, 3, 1)
	for range 2 {
		if _, _, err := d.appendOnce(t.Context(), events, 0, 1<<20); !errors.Is(err, ErrUnavailable) {
			t.Fatalf("the error is %v, want that nothing was stored", err)
		}
	}
	exec(`DROP TRIGGER refuse ON waybill.batches`)
	if stored := mustAppendOnce(t, d, events); stored != len(events) {
		t.Errorf("the retry stored %d events, want %d", stored, len(events))
	}
	assertOnce(t, d.store, len(events)+3)
}

// What Postgres finds unacceptable in an event is not taken for a refusal of the guard, nor a
// refusal for that.
func TestTheGuardIsNoDataError(t *testing.T) {
	d := mustDeduper(t, mustDedupeDatabase(t, time.Minute))
	var data *dataError
	bad := Event{Source: "/s", Type: "t", ID: "\x00", Encoded: []byte("x"), Fingerprint: Fingerprint{1}}
	if _, _, err := d.appendOnce(t.Context(), []Event{bad}, 0, 1<<20); !errors.As(err, &data) || !d.refused.IsZero() {
		t.Errorf("the error is %v, refused at %v; want one of the data, and no refusal", err, d.refused)
	}
	_, err := d.store.pool.Exec(t.Context(), `SELECT false::waybill.may_commit`)
	if !refusedByGuard(err) {
		t.Errorf("%v is not taken for a refusal", err)
	}
	// Other constraints of the same table are the data's.
	_, err = d.store.pool.Exec(t.Context(), `INSERT INTO waybill.dedupe_log (slot, events, fingerprints) VALUES (0, 1, '')`)
	if refusedByGuard(err) || !errors.As(classifyAppend(err, true), &data) {
		t.Errorf("%v is taken for a refusal", err)
	}
}

// A process that appends does not plan its statements anew with each flush.
func TestPlansAreKept(t *testing.T) {
	url := mustDedupeDatabase(t, time.Minute)
	cfg := DefaultStoreConfig(url)
	cfg.KeepPlans = true
	s, err := OpenStore(t.Context(), cfg, testSpec.Lanes)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	conn, err := s.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	d := newDeduper(s, DefaultDedupeBytes)
	if err := d.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustAddKeys(t, s, []Event{mustEvent(t, "/s", "t", "first")})
	for i := range 3 {
		f, err := newFlush([]Event{mustEvent(t, "/s", "t", fmt.Sprint(i))}, s.lanes, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := appendGuarded(t.Context(), conn.Conn(), d, f, 0); err != nil {
			t.Fatal(err)
		}
		d.committed(f.events, time.Now())
	}
	var anew, kept int
	if err := conn.QueryRow(t.Context(), `SELECT sum(custom_plans), sum(generic_plans) FROM pg_prepared_statements
		WHERE statement LIKE '%waybill.dedupe_log%' AND statement NOT LIKE '%pg_prepared_statements%'`).Scan(&anew, &kept); err != nil {
		t.Fatal(err)
	}
	if anew != 0 || kept < 6 {
		t.Errorf("%d executions of a flush's statements were planned anew, %d were not; want 0 and 6", anew, kept)
	}
}
