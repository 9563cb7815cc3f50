package pipeline

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"google.golang.org/protobuf/proto"

	"github.com/waybillhq/waybill/internal/pgtest"
)

// row is one row of waybill.events.
type row struct {
	Position         int64
	Source, Type, ID string
	Seqnum           int64
	Encoded          []byte
}

func mustRows(t testing.TB, s *Store) []row {
	t.Helper()
	rows, err := s.pool.Query(t.Context(), `SELECT position, source, type, event_id, seqnum, event FROM waybill.events ORDER BY position`)
	if err != nil {
		t.Fatal(err)
	}
	out, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func mustCount(t testing.TB, s *Store, sql string, args ...any) int {
	t.Helper()
	var n int
	if err := s.pool.QueryRow(t.Context(), sql, args...).Scan(&n); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return n
}

func mustAppend(t testing.TB, s *Store, events []Event) *appended {
	t.Helper()
	done, err := s.Append(t.Context(), events, time.Hour, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return done
}

// All ways of appending, a statement for one key, one for several, and COPY, must store the same.
func TestAppendStoresEachEventOnce(t *testing.T) {
	for _, c := range []struct{ events, keys int }{
		{1, 1}, {7, 1}, {smallFlush, 1}, {smallFlush + 1, 1}, {7, 13}, {smallFlush, 13}, {smallFlush + 1, 13}, {5000, 13},
	} {
		t.Run(fmt.Sprintf("%d of %d keys", c.events, c.keys), func(t *testing.T) {
			s := mustStore(t)
			n := c.events
			events := mustEvents(t, n, c.keys)
			done := mustAppend(t, s, events)
			stored := map[string]row{}
			for _, r := range mustRows(t, s) {
				stored[r.ID] = r
			}
			if len(stored) != n {
				t.Fatalf("stored %d of %d events", len(stored), n)
			}
			total := 0
			for i, b := range done.batches {
				bodies, err := splitBody(done.bodies[i], b.count)
				if err != nil || len(bodies) != b.count {
					t.Fatalf("batch %v: %d bodies, %v", b.ID, len(bodies), err)
				}
				for index, body := range bodies {
					ce := &pb.CloudEvent{}
					if err := proto.Unmarshal(body, ce); err != nil {
						t.Fatal(err)
					}
					r := stored[ce.Id]
					if r.Position != Position(b.ID.Number, index) || LaneOf(r.Source, r.Type, 4) != b.Lane {
						t.Fatalf("event %s is at %d, its message says batch %v index %d lane %d", ce.Id, r.Position, b.ID, index, b.Lane)
					}
					if got := ce.Attributes[SeqnumAttribute].GetCeString(); got != fmt.Sprint(r.Seqnum) {
						t.Fatalf("event %s carries seqnum %q, the row says %d", ce.Id, got, r.Seqnum)
					}
					total++
				}
			}
			if total != n {
				t.Fatalf("messages hold %d of %d events", total, n)
			}
			if got := mustCount(t, s, `SELECT count(*) FROM waybill.batches WHERE waiting_for = '{archive,ingress}' AND expires_at > now()`); got != len(done.batches) {
				t.Fatalf("%d batches wait for both sinks, want %d", got, len(done.batches))
			}
		})
	}
}

// Invariant 4: seqnum per key starts at 1 without gap, duplicate or fork, with two stores
// and 64 writers.
func TestSeqnumHasNoGapAndNoFork(t *testing.T) {
	url := pgtest.New(t)
	stores := []*Store{mustStoreAt(t, url), mustStoreAt(t, url)}
	const writers, rounds, keys = 64, 12, 200 // of several pages, and some new ones each time
	var wg sync.WaitGroup
	errs := make(chan error, writers)
	for w := range writers {
		wg.Go(func() {
			for r := range rounds {
				var events []Event
				for k := range 1 + (w+r)%90 {
					events = append(events, mustEvent(t, fmt.Sprintf("/s/%d", (k*37+w*r)%keys), "t", fmt.Sprintf("%d-%d-%d", w, r, k)))
				}
				if _, err := stores[w%2].Append(t.Context(), events, 0, 1<<20); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Fatal(err)
	}
	assertDense(t, stores[0])
}

// assertDense checks that the stored seqnums of each key are 1..n and the head is n.
func assertDense(t testing.TB, s *Store) {
	t.Helper()
	bad := mustCount(t, s, `
		SELECT count(*) FROM (
			SELECT source, type, count(*) AS n, count(DISTINCT seqnum) AS d, min(seqnum) AS lo, max(seqnum) AS hi
			FROM waybill.events GROUP BY source, type) e
		FULL JOIN waybill.key_heads h USING (source, type)
		WHERE n IS DISTINCT FROM d OR lo <> 1 OR hi <> n OR h.seqnum IS DISTINCT FROM n`)
	if bad != 0 {
		t.Fatalf("%d keys have gaps, duplicates or forks", bad)
	}
}

// A restore may set the sequence back below numbers that are still in use.
func TestAppendAfterTheSequenceWasSetBack(t *testing.T) {
	s := mustStore(t)
	mustAppend(t, s, mustEvents(t, 200, 20))
	for _, n := range []int{3, 300} {
		if _, err := s.pool.Exec(t.Context(), `SELECT setval('waybill.batch_numbers', 1)`); err != nil {
			t.Fatal(err)
		}
		mustAppend(t, s, mustEvents(t, n, 3))
	}
	assertDense(t, s)
}

func TestAppendTellsWhatPostgresRefuses(t *testing.T) {
	s := mustStore(t)
	bad := mustEvent(t, "/s", "t", "x")
	bad.ID = "nul\x00"
	for _, n := range []int{1, smallFlush + 1} {
		events := append(mustEvents(t, n, 2), bad)
		_, err := s.Append(t.Context(), events, 0, 1<<20)
		var data *dataError
		if !errors.As(err, &data) {
			t.Fatalf("got %v, want a data error", err)
		}
	}
	if n := len(mustRows(t, s)); n != 0 {
		t.Fatalf("%d events of failed transactions were stored", n)
	}
}

func TestAppendWithoutPostgresIsUnavailable(t *testing.T) {
	s := mustStore(t)
	s.Close()
	_, err := s.Append(t.Context(), mustEvents(t, 1, 1), 0, 1<<20)
	if !errors.Is(err, ErrUnavailable) {
		t.Fatalf("got %v, want ErrUnavailable", err)
	}
}

// A writer that stalls in its transaction must not hold up a key for ever.
func TestAppendGivesUpOnALockedHead(t *testing.T) {
	url := pgtest.New(t)
	cfg := DefaultStoreConfig(url)
	cfg.LockTimeout = 200 * time.Millisecond
	s := mustStoreWith(t, cfg)
	mustAppend(t, s, mustEvents(t, 1, 1))
	mustHoldHeads(t, mustStoreAt(t, url))
	for _, n := range []int{1, smallFlush + 1} {
		start := time.Now()
		_, err := s.Append(t.Context(), mustEvents(t, n, 1), 0, 1<<20)
		if !errors.Is(err, ErrUnavailable) || time.Since(start) > 30*time.Second {
			t.Fatalf("got %v after %v, want ErrUnavailable after the lock timeout", err, time.Since(start))
		}
	}
}

// mustHoldHeads has every append wait, until release is called or the test ends.
func mustHoldHeads(t testing.TB, s *Store) (release func()) {
	t.Helper()
	tx, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	release = func() {
		if err := tx.Rollback(context.Background()); err != nil && !errors.Is(err, pgx.ErrTxClosed) {
			t.Errorf("let go of the heads: %v", err)
		}
	}
	t.Cleanup(release)
	if _, err := tx.Exec(t.Context(), `SET LOCAL idle_in_transaction_session_timeout = 0; SELECT FROM waybill.heads FOR UPDATE`); err != nil {
		t.Fatal(err)
	}
	return release
}

func TestOpenStoreSaysWhatToDo(t *testing.T) {
	_, err := OpenStore(t.Context(), DefaultStoreConfig(pgtest.NewEmpty(t)), 4)
	if err == nil || !strings.Contains(err.Error(), "waybill migrate") {
		t.Fatalf("empty database: %v", err)
	}
	_, err = OpenStore(t.Context(), DefaultStoreConfig(pgtest.New(t)), 16)
	if err == nil || !strings.Contains(err.Error(), "WAYBILL_LANES=4") {
		t.Fatalf("other lanes: %v", err)
	}
	if err := Migrate(t.Context(), pgtest.New(t), Spec{Lanes: 5, Sinks: []string{"x"}, Grace: time.Second}); err == nil || !strings.Contains(err.Error(), "WAYBILL_LANES=4") {
		t.Fatalf("migrate to other lanes: %v", err)
	}
}

// A pipeline that has sinks keeps to them where that is asked for: an event must not begin to wait for one that nobody
// serves because somebody upgrades.
func TestMigrateKeepsWhatIsNotNamed(t *testing.T) {
	named := Spec{Sinks: []string{"ingress"}, Grace: 3 * time.Second, DedupeWindow: time.Minute}
	later := Spec{Sinks: []string{"archive"}, Grace: 4 * time.Second, DedupeWindow: 0}
	kept := DefaultSpec()
	kept.Kept = Kept{Sinks: true, Grace: true, DedupeWindow: true}
	for _, test := range []struct {
		name        string
		first, then Spec
		want        string
	}{
		{"of a new pipeline", kept, kept, "archive ingress, grace 10s, window 10m0s"},
		{"of one that has others", named, kept, "ingress, grace 3s, window 1m0s"},
		{"and takes those that are named", named, later, "archive ingress, grace 4s, window 0s"},
	} {
		url := pgtest.NewEmpty(t)
		for _, spec := range []Spec{test.first, test.then} {
			spec.Lanes = testSpec.Lanes
			if err := Migrate(t.Context(), url, spec); err != nil {
				t.Fatal(err)
			}
		}
		s, err := OpenStore(t.Context(), DefaultStoreConfig(url), testSpec.Lanes)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(s.Close)
		names, err := s.Sinks(t.Context())
		if got := fmt.Sprintf("%s, grace %v, window %v", strings.Join(names, " "), s.Grace(), s.DedupeWindow()); err != nil || got != test.want {
			t.Errorf("%s: %s, %v; want %s", test.name, got, err, test.want)
		}
	}
}

// A database that cannot hold all text is refused before anything is made in it.
func TestMigrateRefusesAnotherEncoding(t *testing.T) {
	conn, err := pgx.Connect(t.Context(), pgtest.NewEmpty(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	name := fmt.Sprintf("latin_%d", os.Getpid())
	mustExec(t, conn, `CREATE DATABASE `+name+` ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0`)
	defer func() {
		if _, err := conn.Exec(context.Background(), `DROP DATABASE `+name); err != nil {
			t.Error(err)
		}
	}()
	latin, err := url.Parse(conn.Config().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	latin.Path = "/" + name
	if err := Migrate(t.Context(), latin.String(), testSpec); err == nil || !strings.Contains(err.Error(), "LATIN1") || !strings.Contains(err.Error(), "ENCODING 'UTF8'") {
		t.Fatalf("migrated: %v", err)
	}
	inside, err := pgx.Connect(t.Context(), latin.String())
	if err != nil {
		t.Fatal(err)
	}
	var made bool
	err = inside.QueryRow(t.Context(), `SELECT to_regnamespace('waybill') IS NOT NULL`).Scan(&made)
	if err := errors.Join(err, inside.Close(t.Context())); err != nil || made {
		t.Errorf("a schema is made: %v, %v", made, err)
	}
}

func TestMigrateAtOnce(t *testing.T) {
	url := pgtest.NewEmpty(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := Migrate(t.Context(), url, testSpec); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func receiptFor(sink string, batches ...Batch) Receipt {
	r := Receipt{Sink: sink}
	for _, b := range batches {
		r.Batches = append(r.Batches, BatchReceipt{ID: b.ID})
	}
	return r
}

func mustSettle(t testing.TB, s *Store, receipts ...Receipt) Settled {
	t.Helper()
	done, err := s.Settle(t.Context(), receipts)
	if err != nil {
		t.Fatal(err)
	}
	return done
}

// Invariant 2: a row leaves events only when its batch is settled for every sink.
func TestSettleDeletesOnlyWhatEverySinkHas(t *testing.T) {
	s := mustStore(t)
	done := mustAppend(t, s, mustEvents(t, 100, 40))
	mustSettle(t, s, receiptFor("ingress", done.batches...))
	if n := len(mustRows(t, s)); n != 100 {
		t.Fatalf("one receipt of two deleted events: %d of 100 left", n)
	}
	mustSettle(t, s, receiptFor("ingress", done.batches...)) // again: changes nothing
	if n := len(mustRows(t, s)); n != 100 {
		t.Fatalf("the same receipt twice deleted events: %d of 100 left", n)
	}
	got := mustSettle(t, s, receiptFor("archive", done.batches[1:]...))
	if got.Batches != len(done.batches)-1 {
		t.Fatalf("settled %d batches, want %d", got.Batches, len(done.batches)-1)
	}
	if n := len(mustRows(t, s)); n != done.batches[0].count {
		t.Fatalf("%d events left, want the %d of the first batch", n, done.batches[0].count)
	}
	mustSettle(t, s, receiptFor("archive", done.batches[0]), receiptFor("archive", done.batches[0]))
	if n := mustCount(t, s, `SELECT (SELECT count(*) FROM waybill.events) + (SELECT count(*) FROM waybill.batches) + (SELECT count(*) FROM waybill.dead_letters)`); n != 0 {
		t.Fatalf("%d rows left", n)
	}
}

// A number that a restore gives out again must not be settled by an old receipt.
func TestSettleMatchesNumberAndToken(t *testing.T) {
	s := mustStore(t)
	done := mustAppend(t, s, mustEvents(t, 10, 1))
	old := done.batches[0]
	old.ID.Token++
	mustSettle(t, s, receiptFor("ingress", old), receiptFor("archive", old))
	if n := len(mustRows(t, s)); n != 10 {
		t.Fatalf("an old receipt deleted events: %d of 10 left", n)
	}
}

func TestSettleKeepsRefusedEvents(t *testing.T) {
	s := mustStore(t)
	done := mustAppend(t, s, mustEvents(t, 10, 1))
	b := done.batches[0]
	refused := Receipt{Sink: "ingress", Batches: []BatchReceipt{{ID: b.ID, Refused: []Refusal{{Index: 3, Code: "VALIDATION_FAILED", Reason: "bad"}}}}}
	mustSettle(t, s, receiptFor("archive", b), refused)
	if n := mustCount(t, s, `SELECT count(*) FROM waybill.dead_letters WHERE position = $1 AND sink = 'ingress' AND code = 'VALIDATION_FAILED' AND event_id = 'e3' AND seqnum = 4`, Position(b.ID.Number, 3)); n != 1 {
		t.Fatal("the refused event is not in dead_letters")
	}
	// The same receipt again speaks of a batch that is gone.
	mustSettle(t, s, refused)
	if n := mustCount(t, s, `SELECT count(*) FROM waybill.dead_letters`); n != 1 {
		t.Fatalf("%d dead letters, want 1", n)
	}
}

// After a restore a new batch may refuse at a position that an old dead letter has.
func TestDeadLettersOfAReusedNumber(t *testing.T) {
	s := mustStore(t)
	for range 2 {
		if _, err := s.pool.Exec(t.Context(), `SELECT setval('waybill.batch_numbers', 1)`); err != nil {
			t.Fatal(err)
		}
		b := mustAppend(t, s, mustEvents(t, 1, 1)).batches[0]
		mustSettle(t, s, receiptFor("archive", b),
			Receipt{Sink: "ingress", Batches: []BatchReceipt{{ID: b.ID, Refused: []Refusal{{Index: 0, Code: "NO"}}}}})
	}
	if n := mustCount(t, s, `SELECT count(*) FROM waybill.dead_letters`); n != 2 {
		t.Fatalf("%d dead letters, want 2", n)
	}
}

// Two janitors with the same receipts in other orders must not deadlock.
func TestSettleAtOnce(t *testing.T) {
	url := pgtest.New(t)
	a, b := mustStoreAt(t, url), mustStoreAt(t, url)
	done := mustAppend(t, a, mustEvents(t, 2000, 300))
	var wg sync.WaitGroup
	for i, s := range []*Store{a, b, a, b} {
		wg.Go(func() {
			sink := []string{"ingress", "archive"}[i/2]
			for n := range done.batches {
				if i%2 == 1 {
					n = len(done.batches) - 1 - n
				}
				if _, err := s.Settle(t.Context(), []Receipt{receiptFor(sink, done.batches[n:]...)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := len(mustRows(t, a)); n != 0 {
		t.Fatalf("%d events left", n)
	}
}

func mustExpireNow(t testing.TB, s *Store) {
	t.Helper()
	if _, err := s.pool.Exec(t.Context(), `UPDATE waybill.batches SET expires_at = now() - interval '1 second'`); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Expire(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Invariant 2: what expires moves into dead_letters, once per sink that lacks it.
func TestExpireMovesToDeadLetters(t *testing.T) {
	s := mustStore(t)
	done := mustAppend(t, s, mustEvents(t, 50, 20))
	mustSettle(t, s, receiptFor("ingress", done.batches[0]))
	mustExpireNow(t, s)
	if n := mustCount(t, s, `SELECT (SELECT count(*) FROM waybill.events) + (SELECT count(*) FROM waybill.batches)`); n != 0 {
		t.Fatalf("%d rows left", n)
	}
	want := 2*50 - done.batches[0].count
	if n := mustCount(t, s, `SELECT count(*) FROM waybill.dead_letters WHERE code = 'expired'`); n != want {
		t.Fatalf("%d dead letters, want %d", n, want)
	}
	got := mustSettle(t, s, receiptFor("archive", done.batches[0]))
	if got.Late != done.batches[0].count {
		t.Fatalf("%d dead letters delivered late, want %d", got.Late, done.batches[0].count)
	}
}

func TestRequeueGoesBackAndIsClearedByAReceipt(t *testing.T) {
	s := mustStore(t)
	done := mustAppend(t, s, mustEvents(t, 5, 1))
	original := done.batches[0]
	mustSettle(t, s, receiptFor("ingress", original))
	mustExpireNow(t, s)
	if n := mustRequeue(t, s, LetterFilter{Sink: "archive"}); n != 5 {
		t.Fatalf("requeued %d; want 5", n)
	}
	if n := mustRequeue(t, s, LetterFilter{Sink: "archive"}); n != 0 {
		t.Fatalf("requeued %d again, want none", n)
	}
	var claims []claimed
	claims, damaged, err := mustClaim(t, s, original.Lane, 100, staleFor{"archive", time.Now()})
	if err != nil || len(claims) != 5 || len(damaged) != 0 {
		t.Fatalf("claimed %d (%d damaged), %v; want 5", len(claims), len(damaged), err)
	}
	for i, c := range claims {
		if c.batch.Origin == nil || c.batch.Origin.Batch != original.ID || c.batch.Origin.Index != i {
			t.Fatalf("claim %d has origin %+v, want %v/%d", i, c.batch.Origin, original.ID, i)
		}
		bodies, _ := splitBody(c.body, 1)
		ce := &pb.CloudEvent{}
		if err := proto.Unmarshal(bodies[0], ce); err != nil || ce.Attributes[SeqnumAttribute].GetCeString() != fmt.Sprint(i+1) {
			t.Fatalf("claim %d: %v, seqnum %v", i, err, ce.Attributes[SeqnumAttribute])
		}
		if !c.batch.AcceptedAt.Equal(original.AcceptedAt) {
			t.Fatalf("accepted at %v, want the original %v", c.batch.AcceptedAt, original.AcceptedAt)
		}
	}
	mustSettle(t, s, receiptFor("archive", claims[0].batch),
		Receipt{Sink: "archive", Batches: []BatchReceipt{{ID: claims[1].batch.ID, Refused: []Refusal{{Code: "NO", Reason: "again"}}}}})
	if n := mustCount(t, s, `SELECT count(*) FROM waybill.dead_letters`); n != 4 {
		t.Fatalf("%d dead letters, want 4: one was delivered", n)
	}
	if n := mustCount(t, s, `SELECT count(*) FROM waybill.dead_letters WHERE code = 'NO' AND requeued_at IS NULL AND position = $1`, Position(original.ID.Number, 1)); n != 1 {
		t.Fatal("the one refused again is not back under its own position")
	}
	mustExpireNow(t, s)
	if n := mustCount(t, s, `SELECT count(*) FROM waybill.dead_letters WHERE requeued_at IS NULL`); n != 4 {
		t.Fatalf("%d dead letters that are not on their way, want 4", n)
	}
}

func TestPurgeDeadLettersSparesWhatIsOnItsWay(t *testing.T) {
	s := mustStore(t)
	mustAppend(t, s, mustEvents(t, 4, 1))
	mustExpireNow(t, s)
	if n := mustRequeue(t, s, LetterFilter{Sink: "ingress", ID: "e1"}) + mustRequeue(t, s, LetterFilter{Sink: "ingress", ID: "e2"}) + mustRequeue(t, s, LetterFilter{Sink: "archive", ID: "e3"}); n != 3 {
		t.Fatalf("requeued %d, want 3", n)
	}
	n, err := s.PurgeDeadLetters(t.Context(), -time.Hour, 100)
	if err != nil || n != 8-3 {
		t.Fatalf("purged %d, %v; want 5", n, err)
	}
}

func TestRemovedSinkIsNotWaitedFor(t *testing.T) {
	s := mustStore(t)
	done := mustAppend(t, s, mustEvents(t, 60, 20))
	mustSettle(t, s, receiptFor("ingress", done.batches[0]))
	if err := s.RemoveSink(t.Context(), "archive"); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveSink(t.Context(), "archive"); err == nil {
		t.Fatal("removing a sink twice is no error")
	}
	if _, err := s.DropRemovedSinks(t.Context(), 1000); err != nil {
		t.Fatal(err)
	}
	if n := mustCount(t, s, `SELECT count(*) FROM waybill.batches WHERE waiting_for = '{ingress}'`); n != len(done.batches)-1 {
		t.Fatalf("%d batches wait for ingress, want %d", n, len(done.batches)-1)
	}
	if n := len(mustRows(t, s)); n != 60-done.batches[0].count {
		t.Fatalf("%d events left, want %d", n, 60-done.batches[0].count)
	}
}

// mustClaim finds and claims up to limit stale batches.
func mustClaim(t testing.TB, s *Store, lane, limit int, stale ...staleFor) ([]claimed, []damagedBatch, error) {
	t.Helper()
	found, err := s.FindStale(t.Context(), lane, stale, limit)
	if err != nil {
		t.Fatal(err)
	}
	var numbers []int64
	for _, b := range found {
		numbers = append(numbers, b.number)
	}
	return s.ClaimStale(t.Context(), numbers, stale)
}

// A claim takes what is stale for any of the sinks, oldest first, and nothing twice.
func TestClaimStale(t *testing.T) {
	s := mustStore(t)
	var ids []BatchID
	for range 5 {
		b := mustAppend(t, s, []Event{mustEvent(t, "/s", "t", "x")}).batches[0]
		ids = append(ids, b.ID)
	}
	lane := LaneOf("/s", "t", 4)
	mustSettle(t, s, Receipt{Sink: "ingress", Batches: []BatchReceipt{{ID: ids[2]}}})
	claims, _, err := mustClaim(t, s, lane, 3, staleFor{"ingress", time.Now().Add(time.Minute)}, staleFor{"archive", time.Unix(0, 0)})
	if err != nil || len(claims) != 3 {
		t.Fatalf("claimed %d, %v; want 3", len(claims), err)
	}
	for i, want := range []int{0, 1, 3} {
		c := claims[i].batch
		if c.ID != ids[want] || c.Attempt != 1 || strings.Join(c.Sinks, ",") != "ingress" {
			t.Fatalf("claim %d is %v attempt %d for %v, want %v for ingress", i, c.ID, c.Attempt, c.Sinks, ids[want])
		}
	}
	claims, _, err = mustClaim(t, s, lane, 1, staleFor{"archive", time.Now().Add(time.Minute)}, staleFor{"ingress", time.Now().Add(time.Minute)})
	if err != nil || len(claims) != 1 || claims[0].batch.ID != ids[0] || len(claims[0].batch.Sinks) != 2 {
		t.Fatalf("claimed %+v, %v; want the oldest for both", claims, err)
	}
	if claims, _, _ = mustClaim(t, s, lane+1, 100, staleFor{"archive", time.Now().Add(time.Minute)}); len(claims) != 0 {
		t.Fatal("claimed batches of another lane")
	}
}

// The plans must not depend on statistics: those of an empty table are still in force when
// a hundred thousand batches wait.
func TestPlansWithStaleStatistics(t *testing.T) {
	s := mustStore(t)
	ctx := t.Context()
	for _, sql := range []string{
		`ALTER TABLE waybill.batches SET (autovacuum_enabled = off)`,
		`ALTER TABLE waybill.events SET (autovacuum_enabled = off)`,
		`ANALYZE waybill.batches`, `ANALYZE waybill.events`,
	} {
		if _, err := s.pool.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	// Warm the plan caches while the tables are empty.
	small := mustAppend(t, s, mustEvents(t, 10, 10))
	for range 10 {
		mustSettle(t, s, receiptFor("ingress", small.batches...))
	}
	if _, err := s.pool.Exec(ctx, `
		WITH b AS (INSERT INTO waybill.batches (batch, token, lane, events, bytes, waiting_for)
			SELECT 1000000 + i, i, i % 4, 1, 100, '{archive,ingress}' FROM generate_series(1, 100000) i RETURNING batch)
		INSERT INTO waybill.events SELECT batch << 12, '/s', 't', 'x', 1, '' FROM b`); err != nil {
		t.Fatal(err)
	}
	var receipts []Receipt
	for i := int64(1); i <= 1000; i++ {
		receipts = append(receipts, receiptFor("ingress", Batch{ID: BatchID{Number: 1000000 + i*97, Token: uint64(i * 97)}}),
			receiptFor("archive", Batch{ID: BatchID{Number: 1000000 + i*97, Token: uint64(i * 97)}}))
	}
	start := time.Now()
	if done := mustSettle(t, s, receipts...); done.Batches != 1000 {
		t.Fatalf("settled %d, want 1000", done.Batches)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Fatalf("settling 1,000 of 100,000 batches took %v: a plan scans the table", took)
	}
}

// Many large batches that expire together must not exceed what a statement may take, or none
// of them ever would.
func TestExpireIsBoundedByEvents(t *testing.T) {
	s := mustStore(t)
	if _, err := s.pool.Exec(t.Context(), `
		WITH b AS (INSERT INTO waybill.batches (batch, token, lane, events, bytes, waiting_for, expires_at)
			SELECT i, i, 0, 4096, 100, '{archive,ingress}', now() - interval '1 hour' FROM generate_series(1, 12) i RETURNING batch)
		INSERT INTO waybill.events SELECT batch << 12 | n, '/s', 't', 'x', 1, '' FROM b, generate_series(0, 4095) n`); err != nil {
		t.Fatal(err)
	}
	total := 0
	for {
		start := time.Now()
		moved, err := s.Expire(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(moved) == 0 {
			break
		}
		if moved[SinkCode{"archive", CodeExpired}] > expireEvents+MaxBatchEvents {
			t.Fatalf("one statement moved %d events", moved[SinkCode{"archive", CodeExpired}])
		}
		if took := time.Since(start); took > 20*time.Second {
			t.Fatalf("one statement took %v", took)
		}
		total += moved[SinkCode{"archive", CodeExpired}]
	}
	if total != 12*4096 {
		t.Fatalf("%d of %d events expired", total, 12*4096)
	}
}

// What walks over all batches may take longer than a statement that holds locks.
func TestScansHaveTheirOwnTimeLimit(t *testing.T) {
	s := mustStore(t)
	var limit string
	err := s.scan(t.Context(), func(tx pgx.Tx) error {
		return tx.QueryRow(t.Context(), `SHOW statement_timeout`).Scan(&limit)
	})
	if err != nil || limit != "10min" {
		t.Fatalf("the limit is %q, %v", limit, err)
	}
}

// A batch past its TTL is on its way to dead_letters: forwarders would not deliver it.
func TestExpiredBatchesAreNotStale(t *testing.T) {
	s := mustStore(t)
	b := mustAppend(t, s, mustEvents(t, 1, 1)).batches[0]
	if _, err := s.pool.Exec(t.Context(), `UPDATE waybill.batches SET expires_at = now() - interval '1 second'`); err != nil {
		t.Fatal(err)
	}
	if found, err := s.FindStale(t.Context(), b.Lane, []staleFor{{"archive", time.Now().Add(time.Minute)}}, 10); err != nil || len(found) != 0 {
		t.Fatalf("found %v, %v", found, err)
	}
}

// A dead letter that was requeued for a sink that is then removed must not be stuck.
func TestRequeueForARemovedSink(t *testing.T) {
	s := mustStore(t)
	mustAppend(t, s, mustEvents(t, 3, 1))
	mustExpireNow(t, s)
	if n := mustRequeue(t, s, LetterFilter{Sink: "archive"}); n != 3 {
		t.Fatalf("requeued %d", n)
	}
	if err := s.RemoveSink(t.Context(), "archive"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.DropRemovedSinks(t.Context(), 100); err != nil {
		t.Fatal(err)
	}
	if n := mustCount(t, s, `SELECT count(*) FROM waybill.events`); n != 0 {
		t.Fatalf("%d events of the removed sink are left", n)
	}
	if done := mustRequeueStep(t, s, LetterFilter{Sink: "archive"}); done.Letters != 0 || done.Skipped != 3 {
		t.Fatalf("without the sink: %+v", done)
	}
	if _, err := s.pool.Exec(t.Context(), `INSERT INTO waybill.sinks (name) VALUES ('archive')`); err != nil {
		t.Fatal(err)
	}
	if n := mustRequeue(t, s, LetterFilter{Sink: "archive"}); n != 3 {
		t.Fatalf("after the sink came back: requeued %d", n)
	}
}

// Postgres words its severities in the server's language.
func TestErrorsAreUnderstoodInAnyLanguage(t *testing.T) {
	err := &pgconn.PgError{Severity: "FEHLER", SeverityUnlocalized: "ERROR", Code: "22021"}
	var data *dataError
	if !errors.As(classifyAppend(err, true), &data) {
		t.Fatalf("not understood: %v", classifyAppend(err, true))
	}
}

// A connection that breaks between the reads of a store that is opened says no more than one that
// cannot be made: a process waits and tries again.
func TestOpenStoreWhilePostgresGoesAway(t *testing.T) {
	url := pgtest.New(t)
	s := mustStoreAt(t, url)
	tx, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(t.Context(), `LOCK TABLE waybill.pipeline`); err != nil {
		t.Fatal(err)
	}
	opened := make(chan error, 1)
	cfg := DefaultStoreConfig(url)
	cfg.LockTimeout, cfg.StatementTimeout = patience, patience // it waits until its session is ended
	go func() {
		other, err := OpenStore(t.Context(), cfg, testSpec.Lanes)
		if err == nil {
			other.Close()
		}
		opened <- err
	}()
	eventually(t, patience, "the session that waits for the table is ended", func() bool {
		return mustCount(t, s, `SELECT count(pg_terminate_backend(pid)) FROM pg_locks
			WHERE relation = 'waybill.pipeline'::regclass AND NOT granted`) > 0
	})
	if err := <-opened; !errors.Is(err, ErrUnavailable) {
		t.Errorf("%v, want %v", err, ErrUnavailable)
	}
}
