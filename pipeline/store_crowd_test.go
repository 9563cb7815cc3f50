package pipeline

import (
	"encoding/hex"
	"testing"
	"time"
)

// A million events wait, each in a batch of its own, and the statistics are those of empty
// tables: what the processes do all the time must not notice, and what walks over all of
// them must come to an end.
func TestAMillionWaitingWithStaleStatistics(t *testing.T) {
	s := mustStore(t)
	for _, sql := range []string{
		`ALTER TABLE waybill.batches SET (autovacuum_enabled = off)`,
		`ALTER TABLE waybill.events SET (autovacuum_enabled = off)`,
		`ANALYZE waybill.batches`, `ANALYZE waybill.events`,
	} {
		mustRunSQL(t, s, sql)
	}
	// Plans are kept from when the tables were empty.
	for range 10 {
		mustWorkBeside(t, s)
	}
	mustRunSQL(t, s, `
		INSERT INTO waybill.batches (batch, token, lane, events, bytes, waiting_for, queued_at)
		SELECT 1000000 + i, i, i % 4, 1, 100, '{archive,ingress}', now() - interval '1 hour' FROM generate_series(1, 1000000) i`)
	mustRunSQL(t, s, `INSERT INTO waybill.events SELECT (1000000 + i)::bigint << 12, '/s', 't', 'x', 1, '\x`+
		hex.EncodeToString(mustEvent(t, "/s", "t", "x").Encoded)+`' FROM generate_series(1, 1000000) i`)
	within(t, "100 times accepting and settling", 20*time.Second, func() {
		for range 100 {
			mustWorkBeside(t, s)
		}
	})
	within(t, "a survey", 30*time.Second, func() {
		survey, err := s.Survey(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if n := survey.BySink()["archive"].Batches; n != 1_000_000 {
			t.Errorf("%d batches wait for the archive, want a million", n)
		}
	})
	stale := []staleFor{{"archive", time.Now()}}
	within(t, "finding and claiming stale batches", 30*time.Second, func() {
		found, err := s.FindStale(t.Context(), 1, stale, retransmitFind)
		if err != nil {
			t.Fatal(err)
		}
		numbers := make([]int64, 0, retransmitMostChunk)
		for _, b := range found[:retransmitMostChunk] {
			numbers = append(numbers, b.number)
		}
		if claimed, damaged, err := s.ClaimStale(t.Context(), numbers, stale); err != nil || len(claimed) != len(numbers) || len(damaged) > 0 {
			t.Fatalf("claimed %d of %d, %d damaged, %v", len(claimed), len(numbers), len(damaged), err)
		}
	})
	within(t, "settling 1,000 batches", 30*time.Second, func() {
		var all []Batch
		for i := int64(1); i <= 1000; i++ {
			all = append(all, Batch{ID: BatchID{Number: 1000000 + i*997, Token: uint64(i * 997)}})
		}
		if done := mustSettle(t, s, receiptFor("ingress", all...), receiptFor("archive", all...)); done.Batches != 1000 {
			t.Errorf("settled %d, want 1000", done.Batches)
		}
	})
}

// mustWorkBeside accepts some events, as a small and as a large flush, and settles them.
func mustWorkBeside(t testing.TB, s *Store) {
	t.Helper()
	for _, n := range []int{10, 2 * smallFlush} {
		batches := mustAppend(t, s, mustEvents(t, n, 5)).batches
		mustSettle(t, s, receiptFor("ingress", batches...), receiptFor("archive", batches...))
	}
}

func mustRunSQL(t testing.TB, s *Store, sql string) {
	t.Helper()
	conn, err := s.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if _, err := conn.Exec(t.Context(), `SET statement_timeout = 0`); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), `RESET statement_timeout`); err != nil {
		t.Fatal(err)
	}
}

// within measures, and wants an order of magnitude less than a scan would take.
func within(t testing.TB, what string, limit time.Duration, do func()) {
	t.Helper()
	began := time.Now()
	do()
	took := time.Since(began)
	t.Logf("%s took %v", what, took.Round(time.Millisecond))
	if took > limit {
		t.Errorf("%s took %v with a million waiting, want %v at most", what, took, limit)
	}
}
