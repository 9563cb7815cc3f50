package pipeline

import (
	"errors"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
)

// tableOf returns what is known of a table.
func tableOf(t *testing.T, s *Store, name string) TableHealth {
	t.Helper()
	tables, err := s.Tables(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(tables, func(h TableHealth) bool { return h.Table == name })
	if i < 0 {
		t.Fatalf("there is no table %s among %v", name, tables)
	}
	return tables[i]
}

// The health of the tables follows what is written, and a vacuum.
func TestTablesSayWhatIsWritten(t *testing.T) {
	s := mustStore(t)
	if h := tableOf(t, s, "events"); h.Inserted != 0 || h.Vacuumed {
		t.Errorf("a new table is %+v", h)
	}
	done := mustAppend(t, s, mustEvents(t, 300, 20))
	for i := range done.batches {
		mustSettle(t, s, receiptFor("archive", done.batches[i]), receiptFor("ingress", done.batches[i]))
	}
	if _, err := s.pool.Exec(t.Context(), `VACUUM waybill.events`); err != nil {
		t.Fatal(err)
	}
	// Each session brings its counts in when it has been idle for a moment.
	var h TableHealth
	eventually(t, patience, "the counts are there", func() bool {
		h = tableOf(t, s, "events")
		return h.Inserted == 300 && h.Gone == 300 && h.Vacuumed
	})
	if h.Bytes == 0 || h.Live != 0 || h.SinceVacuum < 0 || h.SinceVacuum > patience {
		t.Errorf("emptied and vacuumed it is %+v", h)
	}
}

// A table that is locked for long is no trouble of a janitor's; a Postgres that is away is.
func TestALockedTableIsLookedAtAgain(t *testing.T) {
	r := mustRig(t)
	store := mustStoreAt(t, r.url+"&lock_timeout=50ms") // of the session alone: to connect may take longer
	j, err := NewJanitor(testJanitorConfig(), store, r.queue, testLog(t), testMeter)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.lookAtTables(t.Context()); err != nil || len(j.tableHealth()) < 5 {
		t.Fatalf("%d tables, %v", len(j.tableHealth()), err)
	}
	lock, err := r.store.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock.Exec(t.Context(), `LOCK TABLE waybill.dedupe_log_0`); err != nil {
		t.Fatal(err)
	}
	_, err = store.Tables(t.Context())
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != "55P03" {
		t.Fatalf("the table is locked, and %v", err)
	}
	if err := j.lookAtTables(t.Context()); err != nil || len(j.tableHealth()) < 5 {
		t.Errorf("%d tables are known, %v", len(j.tableHealth()), err)
	}
	if err := lock.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	store.Close()
	if err := j.lookAtTables(t.Context()); err == nil {
		t.Error("a store that is closed is no trouble")
	}
}
