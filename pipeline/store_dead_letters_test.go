package pipeline

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/internal/pgtest"
)

// mustWalk calls step until the walk is done.
func mustWalk(t testing.TB, s *Store, filter LetterFilter, step func(*LetterWalk) error) {
	t.Helper()
	w, err := s.WalkLetters(t.Context(), filter)
	if err != nil {
		t.Fatal(err)
	}
	for !w.Done() {
		if err := step(w); err != nil {
			t.Fatal(err)
		}
	}
}

func mustRequeueStep(t testing.TB, s *Store, filter LetterFilter) (sum Requeued) {
	t.Helper()
	mustWalk(t, s, filter, func(w *LetterWalk) error {
		done, err := w.Requeue(t.Context(), 1000, time.Hour)
		sum.Letters += done.Letters
		sum.Skipped += done.Skipped
		return err
	})
	return sum
}

func mustRequeue(t testing.TB, s *Store, filter LetterFilter) int {
	t.Helper()
	return mustRequeueStep(t, s, filter).Letters
}

func mustPurge(t testing.TB, s *Store, filter LetterFilter) (sum int) {
	t.Helper()
	mustWalk(t, s, filter, func(w *LetterWalk) error {
		n, err := w.Purge(t.Context(), 1000)
		sum += n
		return err
	})
	return sum
}

func mustList(t testing.TB, s *Store, filter LetterFilter) (all []DeadLetter) {
	t.Helper()
	mustWalk(t, s, filter, func(w *LetterWalk) error {
		letters, err := w.List(t.Context(), 1000, true)
		all = append(all, letters...)
		return err
	})
	return all
}

func mustListOne(t testing.TB, s *Store, filter LetterFilter) DeadLetter {
	t.Helper()
	letters := mustList(t, s, filter)
	if len(letters) != 1 {
		t.Fatalf("%d dead letters, want 1", len(letters))
	}
	return letters[0]
}

func TestListDeadLetters(t *testing.T) {
	s := mustStore(t)
	mustAppend(t, s, mustEvents(t, 3, 1))
	mustExpireNow(t, s)
	letters := mustList(t, s, LetterFilter{})
	if len(letters) != 6 { // for each sink
		t.Fatal(len(letters))
	}
	first := letters[0]
	if first.Code != "expired" || first.Source != "/source/0" || first.Type != "test.event" || first.Seqnum < 1 || first.Reason == "" ||
		!strings.Contains(string(first.Encoded), "payload of "+first.ID) || time.Since(first.FailedAt).Abs() > time.Minute ||
		first.State() != LetterDead || first.Token == 0 || first.RequeuedBatch != 0 || first.Requeues != 0 {
		t.Errorf("%+v", first)
	}
	if at, err := s.LettersAt(t.Context(), first.Position, ""); err != nil || len(at) != 2 || at[0].Position != first.Position || at[0].Encoded == nil {
		t.Errorf("%+v, %v", at, err)
	}
	if at, err := s.LettersAt(t.Context(), first.Position, "ingress"); err != nil || len(at) != 1 || at[0].Sink != "ingress" {
		t.Errorf("%+v, %v", at, err)
	}
	if n := mustRequeue(t, s, LetterFilter{Sink: "archive", ID: "e1"}); n != 1 {
		t.Fatal(n)
	}
	d := mustListOne(t, s, LetterFilter{States: []LetterState{LetterRequeued}})
	if d.ID != "e1" || d.Sink != "archive" || d.State() != LetterRequeued || d.RequeuedBatch == 0 || d.Requeues != 1 {
		t.Errorf("%+v", d)
	}
}

func TestLetterFilter(t *testing.T) {
	s := mustStore(t)
	first := mustAppend(t, s, []Event{mustEvent(t, "/a/1", "com.example.one", "x"), mustEvent(t, "/a/2", "com.example.two", "y"), mustEvent(t, "/b", "com*", "z")})
	mustExpireNow(t, s)
	between, err := s.Now(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	second := mustAppend(t, s, []Event{mustEvent(t, "/b", "com.example.one", "x")}).batches[0]
	mustSettle(t, s, receiptFor("archive", second),
		Receipt{Sink: "ingress", Batches: []BatchReceipt{{ID: second.ID, Refused: []Refusal{{Code: "NO"}}}}})
	mustSettle(t, s, receiptFor("archive", first.batches...))
	mustRequeue(t, s, LetterFilter{ID: "y", Sink: "ingress"})
	for _, test := range []struct {
		filter LetterFilter
		want   int
	}{
		{LetterFilter{}, 7},
		{LetterFilter{Sink: "ingress"}, 4},
		{LetterFilter{Sink: "other"}, 0},
		{LetterFilter{Code: "NO"}, 1},
		{LetterFilter{Code: "expired", Sink: "archive"}, 3},
		{LetterFilter{Source: "/a/1"}, 2},
		{LetterFilter{Source: "/a/*"}, 4},
		{LetterFilter{Source: "/a/"}, 0},
		{LetterFilter{Source: "*"}, 7},
		{LetterFilter{Type: "com.example.*", Source: "/b"}, 1},
		{LetterFilter{Type: "com**"}, 2}, // the first asterisk stands for itself
		{LetterFilter{Type: "com_example.one"}, 0},
		{LetterFilter{ID: "x"}, 3},
		{LetterFilter{Since: between}, 1},
		{LetterFilter{Until: between}, 6},
		{LetterFilter{Since: between, Until: between.Add(time.Hour)}, 1},
		{LetterFilter{States: []LetterState{LetterDead}}, 3},
		{LetterFilter{States: []LetterState{LetterLate}}, 3},
		{LetterFilter{States: []LetterState{LetterRequeued}}, 1},
		{LetterFilter{States: []LetterState{LetterRequeued, LetterLate}}, 4},
	} {
		if letters := mustList(t, s, test.filter); len(letters) != test.want {
			t.Errorf("%+v: %d, want %d", test.filter, len(letters), test.want)
		}
	}
	for _, bad := range []LetterFilter{{States: []LetterState{"x"}}, {Since: between, Until: between}} {
		if _, err := s.WalkLetters(t.Context(), bad); err == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
}

// mustPlant stores n more dead letters of ingress, a thousand for each failed_at, one in a hundred of
// them of the type "rare".
func mustPlant(t testing.TB, s *Store, n int) {
	t.Helper()
	if _, err := s.pool.Exec(t.Context(), `
		INSERT INTO waybill.dead_letters (position, token, sink, code, reason, failed_at, accepted_at, lane, source, type, event_id, seqnum, event)
		SELECT i::bigint << 12, i, 'ingress', 'NO', '', now() - interval '1 day' + i / 1000 * interval '1 ms', now(), 0, '/s',
		       CASE WHEN i % 100 = 0 THEN 'rare' ELSE 'common' END, i::text, i, 'x'
		FROM generate_series(1 + (SELECT coalesce(max(position) >> 12, 0) FROM waybill.dead_letters),
		                     $1::bigint + (SELECT coalesce(max(position) >> 12, 0) FROM waybill.dead_letters)) i`, n); err != nil {
		t.Fatal(err)
	}
}

// A walk sees each letter once and in order, over many pages, and ends although what it
// requeues fails again meanwhile.
func TestLetterWalkSeesEachOnce(t *testing.T) {
	s := mustStore(t)
	const n = 2*walkPage + 5
	mustPlant(t, s, n)
	seen := map[int64]bool{}
	var last letterKey
	mustWalk(t, s, LetterFilter{Type: "rare"}, func(w *LetterWalk) error {
		letters, err := w.List(t.Context(), 7, false)
		for _, d := range letters {
			if seen[d.Position] || d.FailedAt.Before(last.failedAt) || d.Encoded != nil {
				t.Fatalf("position %d comes again or too late", d.Position)
			}
			seen[d.Position], last.failedAt = true, d.FailedAt
		}
		if len(letters) > 7 {
			t.Fatalf("%d letters in a step", len(letters))
		}
		return err
	})
	if len(seen) != n/100 {
		t.Fatalf("%d letters, want %d", len(seen), n/100)
	}
	steps := 0
	mustWalk(t, s, LetterFilter{Type: "rare"}, func(w *LetterWalk) error {
		done, err := w.Requeue(t.Context(), 50, time.Hour)
		mustExpireNow(t, s)
		if steps += done.Letters; steps > n {
			t.Fatal("the walk does not end")
		}
		return err
	})
	if steps != n/100 {
		t.Errorf("requeued %d, want %d", steps, n/100)
	}
}

// What walks through the dead letters reads one page of the index a statement, also with
// the plans of an empty table.
func TestLetterPlansWithStaleStatistics(t *testing.T) {
	s := mustStore(t)
	for _, sql := range []string{`ALTER TABLE waybill.dead_letters SET (autovacuum_enabled = off)`, `ANALYZE waybill.dead_letters`} {
		if _, err := s.pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	for range 10 { // warm the plan caches while the table is empty
		mustList(t, s, LetterFilter{Type: "rare"})
		mustRequeue(t, s, LetterFilter{Type: "rare"})
		mustPurge(t, s, LetterFilter{Type: "rare"})
	}
	const n = 1_000_000
	for range 4 { // statements have a time limit
		mustPlant(t, s, n/4)
	}
	start := time.Now()
	mustWalk(t, s, LetterFilter{Type: "nothing"}, timed(t, "look", func(w *LetterWalk) error { _, err := w.List(t.Context(), walkStep, true); return err }))
	t.Logf("looked through %d dead letters in %v", n, time.Since(start))
	filter := LetterFilter{Type: "rare"}
	mustWalk(t, s, filter, timed(t, "list", func(w *LetterWalk) error { _, err := w.List(t.Context(), walkStep, true); return err }))
	mustWalk(t, s, filter, timed(t, "requeue", func(w *LetterWalk) error { _, err := w.Requeue(t.Context(), walkStep, 0); return err }))
	mustWalk(t, s, LetterFilter{Source: "/s"}, timed(t, "purge", func(w *LetterWalk) error {
		_, err := w.Purge(t.Context(), walkStep)
		w.done = w.done || w.Seen > 3*walkPage
		return err
	}))
	if left := mustCount(t, s, `SELECT count(*) FROM waybill.dead_letters WHERE requeued_at IS NOT NULL`); left != n/100 {
		t.Errorf("%d are on their way, want %d", left, n/100)
	}
	for range 3 { // as janitors do
		start := time.Now()
		if n, err := s.PurgeDeadLetters(t.Context(), time.Hour, purgeLetters); err != nil || n != purgeLetters || time.Since(start) > 10*time.Second {
			t.Errorf("by age: %d in %v, %v", n, time.Since(start), err)
		}
	}
	args := append([]any{nil, time.Now(), time.Unix(0, 0), int64(0), int64(0), "", walkPage, walkStep}, filter.args()...)
	if err := s.ordered(t.Context(), func(tx pgx.Tx) error {
		rows, err := tx.Query(t.Context(), "EXPLAIN "+findLettersSQL, args...)
		if err != nil {
			return err
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if plan := strings.Join(lines, "\n"); !strings.Contains(plan, "using dead_letters_by_failure") {
			t.Errorf("the plan:\n%s", plan)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// timed fails the test when one step takes much longer than a page needs.
func timed(t testing.TB, name string, step func(*LetterWalk) error) func(*LetterWalk) error {
	return func(w *LetterWalk) error {
		start := time.Now()
		err := step(w)
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("%s: one step took %v: a plan reads more than a page", name, took)
		}
		return err
	}
}

// Two operators at once put each dead letter back once.
func TestRequeueTwiceAtOnce(t *testing.T) {
	url := pgtest.New(t)
	a, b := mustStoreAt(t, url), mustStoreAt(t, url)
	mustAppend(t, a, mustEvents(t, 300, 1))
	mustExpireNow(t, a)
	var wg sync.WaitGroup
	sums := make([]Requeued, 2)
	for i, s := range []*Store{a, b} {
		wg.Go(func() { sums[i] = mustRequeueStep(t, s, LetterFilter{Sink: "archive"}) })
	}
	wg.Wait()
	if sums[0].Letters+sums[1].Letters != 300 {
		t.Errorf("%+v", sums)
	}
	if n := mustCount(t, a, `SELECT count(*) FROM waybill.batches`); n != 300 {
		t.Errorf("%d batches, want 300", n)
	}
	if n := mustCount(t, a, `SELECT count(DISTINCT (origin_position, origin_token)) FROM waybill.batches`); n != 300 {
		t.Errorf("%d events, want 300", n)
	}
}

// A purge that meets a letter that is being requeued waits, and then leaves it alone; and the
// other way round, a requeue that meets one that is being deleted queues nothing.
func TestPurgeLosesAgainstRequeue(t *testing.T) {
	s := mustStore(t)
	mustAppend(t, s, mustEvents(t, 1, 1))
	mustExpireNow(t, s)
	w, err := s.WalkLetters(t.Context(), LetterFilter{Sink: "archive"})
	if err != nil {
		t.Fatal(err)
	}
	found, _, err := w.next(t.Context(), w.filter, 10)
	if err != nil || len(found) != 1 {
		t.Fatal(len(found), err)
	}
	tx, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	failed, positions, tokens, sinks := keyArgs(found)
	if _, err := tx.Exec(t.Context(), requeueSQL, failed, positions, tokens, sinks, []int16{0}, nil); err != nil {
		t.Fatal(err)
	}
	purged := make(chan int, 1)
	go func() {
		n, err := w.Purge(context.Background(), 10)
		if err != nil {
			t.Error(err)
		}
		purged <- n
	}()
	eventually(t, patience, "the purge waits for the requeue", func() bool {
		return mustCount(t, s, `SELECT count(*) FROM pg_locks WHERE NOT granted`) > 0
	})
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := <-purged; n != 0 {
		t.Errorf("purged %d", n)
	}
	if d := mustListOne(t, s, LetterFilter{Sink: "archive"}); d.State() != LetterRequeued {
		t.Errorf("%+v", d)
	}
	mustRequeueWhilePurged(t, s)
}

func mustRequeueWhilePurged(t *testing.T, s *Store) {
	t.Helper()
	tx, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(t.Context(), `DELETE FROM waybill.dead_letters WHERE sink = 'ingress'`); err != nil {
		t.Fatal(err)
	}
	w, err := s.WalkLetters(t.Context(), LetterFilter{Sink: "ingress"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan Requeued, 1)
	go func() {
		sum, err := w.Requeue(context.Background(), 10, 0)
		if err != nil {
			t.Error(err)
		}
		done <- sum
	}()
	eventually(t, patience, "the requeue waits for the purge", func() bool {
		return mustCount(t, s, `SELECT count(*) FROM pg_locks WHERE NOT granted`) > 0
	})
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if sum := <-done; sum.Letters != 0 || sum.Skipped != 1 {
		t.Errorf("%+v", sum)
	}
	if n := mustCount(t, s, `SELECT count(*) FROM waybill.batches`); n != 1 {
		t.Errorf("%d batches, want the archive's", n)
	}
}

func TestPurgeSparesWhatIsOnItsWay(t *testing.T) {
	s := mustStore(t)
	mustAppend(t, s, mustEvents(t, 4, 1))
	mustExpireNow(t, s)
	mustRequeue(t, s, LetterFilter{Sink: "archive", ID: "e2"})
	if n := mustPurge(t, s, LetterFilter{States: []LetterState{LetterRequeued}}); n != 0 {
		t.Errorf("purged %d that are on their way", n)
	}
	if n := mustPurge(t, s, LetterFilter{Sink: "archive"}); n != 3 {
		t.Errorf("purged %d, want 3", n)
	}
	letters := mustList(t, s, LetterFilter{})
	if len(letters) != 5 || !slices.ContainsFunc(letters, func(d DeadLetter) bool { return d.Sink == "archive" && d.ID == "e2" }) {
		t.Errorf("%d left", len(letters))
	}
}

// mustRequeued appends one event, lets it expire and requeues it for the archive. It returns the
// original batch and the one it went into.
func mustRequeued(t testing.TB, s *Store) (original, requeued Batch) {
	t.Helper()
	original = mustAppend(t, s, mustEvents(t, 1, 1)).batches[0]
	mustSettle(t, s, receiptFor("ingress", original))
	mustExpireNow(t, s)
	return original, mustRequeueOne(t, s, original)
}

func mustRequeueOne(t testing.TB, s *Store, original Batch) Batch {
	t.Helper()
	if n := mustRequeue(t, s, LetterFilter{Sink: "archive"}); n != 1 {
		t.Fatalf("requeued %d", n)
	}
	claims, damaged, err := mustClaim(t, s, original.Lane, 10, staleFor{"archive", time.Now().Add(time.Minute)})
	if err != nil || len(claims) != 1 || len(damaged) != 0 {
		t.Fatalf("claimed %d (%d damaged), %v", len(claims), len(damaged), err)
	}
	return claims[0].batch
}

func mustHaveNone(t testing.TB, s *Store) {
	t.Helper()
	if n := mustCount(t, s, `SELECT (SELECT count(*) FROM waybill.events) + (SELECT count(*) FROM waybill.batches) + (SELECT count(*) FROM waybill.dead_letters)`); n != 0 {
		t.Errorf("%d rows left", n)
	}
}

// The receipt of the original batch comes while the requeued copy waits: only the copy's own
// clears the letter.
func TestLateReceiptWhileRequeued(t *testing.T) {
	s := mustStore(t)
	original, requeued := mustRequeued(t, s)
	if done := mustSettle(t, s, receiptFor("archive", original)); done.Late != 1 {
		t.Errorf("%+v", done)
	}
	d := mustListOne(t, s, LetterFilter{})
	if d.State() != LetterRequeued || d.DeliveredLateAt.IsZero() {
		t.Errorf("%+v", d)
	}
	if n := mustCount(t, s, `SELECT count(*) FROM waybill.batches WHERE waiting_for = '{archive}'`); n != 1 {
		t.Fatal("the requeued batch is gone")
	}
	mustSettle(t, s, receiptFor("archive", requeued))
	mustHaveNone(t, s)
}

// The same, and then the copy expires: the letter says that the sink has it, and is not
// requeued.
func TestRequeuedExpiresAfterALateReceipt(t *testing.T) {
	s := mustStore(t)
	original, _ := mustRequeued(t, s)
	mustSettle(t, s, receiptFor("archive", original))
	mustExpireNow(t, s)
	if d := mustListOne(t, s, LetterFilter{}); d.State() != LetterLate {
		t.Errorf("%+v", d)
	}
	if n := mustRequeue(t, s, LetterFilter{}); n != 0 {
		t.Errorf("requeued %d that were delivered", n)
	}
	if n := mustPurge(t, s, LetterFilter{States: []LetterState{LetterLate}}); n != 1 {
		t.Errorf("purged %d", n)
	}
}

// A requeued event expires again, and then its own receipt comes after all.
func TestRequeuedExpiresAndIsDeliveredLate(t *testing.T) {
	s := mustStore(t)
	_, requeued := mustRequeued(t, s)
	mustExpireNow(t, s)
	if d := mustListOne(t, s, LetterFilter{}); d.State() != LetterDead || d.RequeuedBatch != requeued.ID.Number || d.Requeues != 1 {
		t.Errorf("%+v", d)
	}
	wrong := requeued
	wrong.ID.Token++
	refused := Receipt{Sink: "archive", Batches: []BatchReceipt{{ID: requeued.ID, Refused: []Refusal{{Code: "NO"}}}}}
	if done := mustSettle(t, s, receiptFor("archive", wrong), receiptFor("ingress", requeued), refused); done.Late != 0 {
		t.Errorf("%+v", done)
	}
	if done := mustSettle(t, s, receiptFor("archive", requeued)); done.Late != 1 {
		t.Errorf("%+v", done)
	}
	if d := mustListOne(t, s, LetterFilter{}); d.State() != LetterLate {
		t.Errorf("%+v", d)
	}
}

// What one sink refused says nothing of another sink, nor of another batch of the same number.
func TestARefusalSpeaksForItsSinkAlone(t *testing.T) {
	s := mustStore(t)
	b := mustAppend(t, s, mustEvents(t, 2, 1)).batches[0]
	mustExpireNow(t, s)
	other := b
	other.ID.Token++
	refusal := []Refusal{{Index: 0, Code: "NO", Reason: "no"}}
	done := mustSettle(t, s,
		Receipt{Sink: "ingress", Batches: []BatchReceipt{{ID: b.ID, Refused: refusal}}},
		Receipt{Sink: "archive", Batches: []BatchReceipt{{ID: other.ID, Refused: refusal}}},
		receiptFor("archive", b))
	if done.Late != 3 {
		t.Errorf("%d dead letters are marked as delivered late, want 3", done.Late)
	}
	for _, d := range mustList(t, s, LetterFilter{States: []LetterState{LetterDead}}) {
		if d.Sink != "ingress" {
			t.Errorf("%s has the event at %d, and its dead letter does not say so", d.Sink, d.Position)
		}
	}
}

// Refused again and requeued again, a letter stays one letter, and a receipt of the first
// copy, late and repeated, does not clear the second.
func TestRequeuedTwice(t *testing.T) {
	s := mustStore(t)
	original, first := mustRequeued(t, s)
	refused := Receipt{Sink: "archive", Batches: []BatchReceipt{{ID: first.ID, Refused: []Refusal{{Code: "NO", Reason: "again"}}}}}
	mustSettle(t, s, refused)
	if d := mustListOne(t, s, LetterFilter{}); d.State() != LetterDead || d.Code != "NO" || d.Position != original.Position(0) {
		t.Errorf("%+v", d)
	}
	second := mustRequeueOne(t, s, original)
	mustSettle(t, s, receiptFor("archive", first))
	if d := mustListOne(t, s, LetterFilter{}); d.State() != LetterRequeued || d.Requeues != 2 {
		t.Errorf("%+v", d)
	}
	mustSettle(t, s, receiptFor("archive", second))
	mustHaveNone(t, s)
}

// A requeued event whose row was lost cannot be sent. When it expires, its letter, which has it
// still, must not stay on its way for ever.
func TestDamagedRequeueIsDeadAgain(t *testing.T) {
	s := mustStore(t)
	mustRequeued(t, s)
	if _, err := s.pool.Exec(t.Context(), `DELETE FROM waybill.events`); err != nil {
		t.Fatal(err)
	}
	mustExpireNow(t, s)
	if d := mustListOne(t, s, LetterFilter{}); d.State() != LetterDead || len(d.Encoded) == 0 {
		t.Errorf("%+v", d)
	}
	if n := mustRequeue(t, s, LetterFilter{}); n != 1 {
		t.Errorf("requeued %d", n)
	}
}

// A letter may be of a lane that the pipeline no longer has.
func TestRequeueOfALaneThatIsNoMore(t *testing.T) {
	s := mustStore(t)
	original := mustAppend(t, s, mustEvents(t, 1, 1)).batches[0]
	mustExpireNow(t, s)
	if _, err := s.pool.Exec(t.Context(), `UPDATE waybill.dead_letters SET lane = 13`); err != nil {
		t.Fatal(err)
	}
	if n := mustRequeue(t, s, LetterFilter{}); n != 2 {
		t.Fatalf("requeued %d", n)
	}
	if n := mustCount(t, s, `SELECT count(*) FROM waybill.batches WHERE lane = $1`, original.Lane); n != 2 {
		t.Errorf("%d batches in lane %d, want 2", n, original.Lane)
	}
	if n := mustCount(t, s, `SELECT count(*) FROM waybill.dead_letters WHERE lane = 13`); n != 2 {
		t.Error(fmt.Sprint("the letters forgot their lane: ", n))
	}
	claims, _, err := mustClaim(t, s, original.Lane, 10, staleFor{"archive", time.Now()})
	if err != nil || len(claims) != 1 {
		t.Fatalf("%d claims, %v", len(claims), err)
	}
	msg := claims[0].batch.message(claims[0].body)
	b, err := parseMessage(original.Lane, msg.Header, msg.Data)
	if err != nil || b.OriginLane != 13 || b.Lane != original.Lane {
		t.Errorf("%+v, %v", b, err)
	}
	for _, bad := range []string{"256", "-1", "x"} {
		msg.Header.Set(headerOriginLane, bad)
		if _, err := parseMessage(original.Lane, msg.Header, msg.Data); err == nil || !strings.Contains(err.Error(), headerOriginLane) {
			t.Errorf("lane %s: %v", bad, err)
		}
	}
}
