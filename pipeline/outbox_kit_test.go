package pipeline

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
)

// service is a program with tables of its own next to the pipeline's.
type service struct{ pool *pgxpool.Pool }

// mustService connects a service, with a table orders.
func mustService(t testing.TB, url string) *service {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	cfg.MaxConns = 16
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	mustExec(t, pool, `CREATE TABLE IF NOT EXISTS public.orders (id text PRIMARY KEY)`)
	return &service{pool}
}

// testCloudEvent makes a valid event.
func testCloudEvent(source, id string) CloudEvent {
	return CloudEvent{Source: source, Type: "test.event", ID: id, Data: TextData("payload of " + id)}
}

// mustBegin begins a transaction that is rolled back at the end of the test, unless it has ended.
func (s *service) mustBegin(t testing.TB) pgx.Tx {
	t.Helper()
	tx, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(context.Background()) }) // of no interest after its end
	return tx
}

// mustEmit emits events in a transaction of their own.
func (s *service) mustEmit(t testing.TB, events ...CloudEvent) {
	t.Helper()
	if err := pgx.BeginFunc(t.Context(), s.pool, func(tx pgx.Tx) error { return EmitTx(t.Context(), tx, events...) }); err != nil {
		t.Fatal(err)
	}
}

// mustEmitIn emits events in a transaction.
func mustEmitIn(t testing.TB, tx pgx.Tx, events ...CloudEvent) {
	t.Helper()
	if err := EmitTx(t.Context(), tx, events...); err != nil {
		t.Fatal(err)
	}
}

func mustCommit(t testing.TB, tx pgx.Tx) {
	t.Helper()
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

var errRollBack = errors.New("rolled back on purpose")

// emitWays are the ways to emit events and store an order for each in one transaction, which ends with a
// commit or a rollback.
var emitWays = map[string]func(ctx context.Context, s *service, commit bool, events []CloudEvent) error{
	"pgx": func(ctx context.Context, s *service, commit bool, events []CloudEvent) error {
		return s.inTx(ctx, commit, events, func(tx pgx.Tx) error { return EmitTx(ctx, tx, events...) })
	},
	"SQL": func(ctx context.Context, s *service, commit bool, events []CloudEvent) error {
		return s.inTx(ctx, commit, events, func(tx pgx.Tx) error {
			for i := range events {
				if _, err := tx.Exec(ctx, `SELECT waybill.emit($1, $2, $3::text, id => $4)`, events[i].Source, events[i].Type, events[i].Data.text, events[i].ID); err != nil {
					return err
				}
			}
			return nil
		})
	},
	"database/sql": func(ctx context.Context, s *service, commit bool, events []CloudEvent) error {
		db := stdlib.OpenDBFromPool(s.pool)
		defer db.Close()
		tx, err := db.BeginTx(ctx, &sql.TxOptions{})
		if err != nil {
			return err
		}
		for i := range events {
			if _, err := tx.ExecContext(ctx, `INSERT INTO public.orders VALUES ($1)`, events[i].ID); err != nil {
				return errors.Join(err, tx.Rollback())
			}
		}
		if err := EmitSQLTx(ctx, tx, events...); err != nil {
			return errors.Join(err, tx.Rollback())
		}
		if !commit {
			return tx.Rollback()
		}
		return tx.Commit()
	},
}

func (s *service) inTx(ctx context.Context, commit bool, events []CloudEvent, emit func(tx pgx.Tx) error) error {
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		for i := range events {
			if _, err := tx.Exec(ctx, `INSERT INTO public.orders VALUES ($1)`, events[i].ID); err != nil {
				return err
			}
		}
		if err := emit(tx); err != nil {
			return err
		}
		if !commit {
			return errRollBack
		}
		return nil
	})
	if errors.Is(err, errRollBack) {
		return nil
	}
	return err
}

// mustIngesterAt runs an ingester of its own, with a store of its own.
func (r *rig) mustIngesterAt(t testing.TB, url string, change func(*IngesterConfig)) (in *Ingester, stop func()) {
	t.Helper()
	in = r.mustIngester(t, url, change)
	return in, mustRun(t, in.Run)
}

// mustIngester makes an ingester of its own, with a store of its own.
func (r *rig) mustIngester(t testing.TB, url string, change func(*IngesterConfig)) *Ingester {
	t.Helper()
	cfg := DefaultIngesterConfig()
	if change != nil {
		change(&cfg)
	}
	in, err := NewIngester(cfg, mustStoreAt(t, url), r.queue, testLog(t), testMeter)
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// leaveOutbox makes an ingester leave the outbox to others.
func leaveOutbox(c *IngesterConfig) { c.Outbox.Take = false }

// awaitTaken waits until nothing waits in the outbox but refused rows.
func awaitTaken(t testing.TB, s *Store) {
	t.Helper()
	eventually(t, patience, "the outbox is taken", func() bool {
		var n int // a connection may have been killed
		return s.pool.QueryRow(t.Context(), `SELECT count(*) FROM waybill.outbox WHERE refused_at IS NULL`).Scan(&n) == nil && n == 0
	})
}

// storedIDs are the ids of the events of each source, in the order of their seqnums.
func storedIDs(t testing.TB, s *Store) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	rows := mustRows(t, s)
	slices.SortStableFunc(rows, func(a, b row) int { return int(a.Seqnum - b.Seqnum) })
	for _, r := range rows {
		out[r.Source] = append(out[r.Source], r.ID)
	}
	return out
}

// assertStored wants exactly the events with the given ids to be stored, each once.
func assertStored(t testing.TB, s *Store, want []string) {
	t.Helper()
	var got []string
	for _, ids := range storedIDs(t, s) {
		got = append(got, ids...)
	}
	slices.Sort(got)
	want = slices.Sorted(slices.Values(want))
	if !slices.Equal(got, want) {
		t.Errorf("%d events are stored, want %d; the first that differs: %s", len(got), len(want), firstDifference(got, want))
	}
	assertDense(t, s)
}

func firstDifference(got, want []string) string {
	for i := range max(len(got), len(want)) {
		switch {
		case i >= len(got):
			return "lost " + want[i]
		case i >= len(want) || got[i] != want[i]:
			return fmt.Sprintf("got %s", got[i])
		}
	}
	return "none"
}
