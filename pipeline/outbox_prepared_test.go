package pipeline

import (
	"errors"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/internal/pgtest"
)

// Invariant 12: the events of a prepared transaction come with COMMIT PREPARED, also when thousands were taken since, and
// Postgres was killed; those of one that is rolled back never were.
func TestPreparedTransactions(t *testing.T) {
	cluster := pgtest.NewCluster(t)
	url := cluster.URL("postgres")
	if err := Migrate(t.Context(), url, testSpec); err != nil {
		t.Fatal(err)
	}
	exec := func(statements ...string) {
		t.Helper()
		conn, err := pgx.Connect(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		for _, sql := range statements {
			mustExec(t, conn, sql)
		}
		if err := conn.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	crash := func() {
		t.Helper()
		if err := errors.Join(cluster.Kill(), cluster.Start(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
	exec(`ALTER SYSTEM SET max_prepared_transactions = 3`)
	crash()
	r := mustRigAt(t, url)
	emit := func(ids ...string) (statements []string) {
		for _, id := range ids {
			statements = append(statements, `SELECT waybill.emit('/s', 't', 'x', id => '`+id+`')`)
		}
		return statements
	}
	prepare := func(name string, ids ...string) {
		t.Helper()
		exec(slices.Concat([]string{`BEGIN`, `SET LOCAL waybill.notify = off`}, emit(ids...), []string{`PREPARE TRANSACTION '` + name + `'`})...)
	}
	stored := func(want ...string) {
		t.Helper()
		eventually(t, patience, "they are stored", func() bool {
			var n int // a connection may have been killed
			return r.store.pool.QueryRow(t.Context(), `SELECT count(*) FROM waybill.events`).Scan(&n) == nil && n >= len(want)
		})
		if got := storedIDs(t, r.store)["/s"]; !slices.Equal(got, want) {
			t.Fatalf("stored %v, want %v", got, want)
		}
	}
	prepare("one", "one-1", "one-2")
	prepare("two", "two")
	prepare("three", "three")
	exec(emit("a")...)
	stored("a")
	exec(`COMMIT PREPARED 'one'`)
	stored("a", "one-1", "one-2")
	crash()
	exec(emit("b")...)
	stored("a", "one-1", "one-2", "b")
	exec(`ROLLBACK PREPARED 'two'`, `COMMIT PREPARED 'three'`)
	stored("a", "one-1", "one-2", "b", "three")
	assertDense(t, r.store)
}
