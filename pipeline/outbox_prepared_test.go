package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

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

func serverStart(t testing.TB, s *Store) (at time.Time) {
	t.Helper()
	if err := s.pool.QueryRow(t.Context(), serverStartSQL).Scan(&at); err != nil {
		t.Fatal(err)
	}
	return at
}

// Invariant 12: what was read before a failover takes no row of the server that came after it, which may have given the
// same numbers to another event.
func TestRowsOfAnotherRunOfTheServer(t *testing.T) {
	for _, known := range []bool{false, true} {
		t.Run(fmt.Sprint("known ", known), func(t *testing.T) {
			cluster := pgtest.NewCluster(t)
			spec := testSpec
			spec.DedupeWindow = time.Hour
			if err := Migrate(t.Context(), cluster.URL("postgres"), spec); err != nil {
				t.Fatal(err)
			}
			r := mustRigAt(t, cluster.URL("postgres"))
			want := []string{"of the new server"}
			if known {
				r.mustAccept(t, mustEvent(t, "/s", "test.event", "lost"))
				want = append(want, "lost")
			}
			r.stop()
			mustService(t, r.url).mustEmit(t, testCloudEvent("/s", "lost"))
			in := r.mustIngester(t, r.url, leaveOutbox)
			s := r.mustBeliever(t, in)
			if err := s.round(t.Context()); err != nil || s.flying == nil {
				t.Fatal(s.flying, err)
			}
			if err := errors.Join(cluster.Kill(), cluster.Start(t.Context())); err != nil {
				t.Fatal(err)
			}
			conn, err := pgx.Connect(t.Context(), r.url)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(context.Background())
			key := s.flying.keys[0]
			mustExec(t, conn, `DELETE FROM waybill.outbox`)
			insertRow(t, conn, key.xid, key.id, "of the new server")
			mustRun(t, in.Run)
			for answer := <-s.flying.done; !errors.Is(answer, errTakenElsewhere); answer = <-s.flying.done {
				if answer == nil {
					t.Fatal("a row of another run of the server was taken")
				}
				// Its first connection was of the server that is gone.
				done := make(answerChannel, 1)
				s.flying.done = done
				in.submit(&unit{events: []Event{mustEvent(t, "/s", "test.event", "lost")}, taken: takenRows{s.flying.keys, s.conn.server}, asked: done})
			}
			if n := mustCount(t, mustStoreAt(t, r.url), `SELECT count(*) FROM waybill.outbox`); n != 1 {
				t.Fatalf("%d rows wait, want the one of the new server", n)
			}
			r.mustIngesterAt(t, r.url, nil)
			store := mustStoreAt(t, r.url)
			awaitTaken(t, store)
			assertStored(t, store, want)
		})
	}
}
