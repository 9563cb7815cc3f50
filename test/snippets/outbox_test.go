package snippets

import (
	"context"
	"crypto/rand"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/waybilltest"
)

// placeOrder stores an order and emits its event, both or neither.
func placeOrder(ctx context.Context, pool *pgxpool.Pool, order Order) error {
	//snippet:begin docs/outbox.md
	tx, err := pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(ctx)
	if _, err := tx.Exec(ctx, `INSERT INTO orders (id, total) VALUES ($1, $2)`, order.ID, order.Total); err != nil {
		return err
	}
	err = pipeline.EmitTx(ctx, tx, pipeline.CloudEvent{
		Source: "/orders", Type: "com.example.order.placed", Subject: order.ID,
		Data: pipeline.JSONData(order),
	})
	if err != nil {
		return err // the event is invalid, or Postgres refused it: roll back
	}
	return tx.Commit(ctx)
	//snippet:end
}

// createTables is how the service makes its tables.
func createTables(ctx context.Context, pool *pgxpool.Pool) error {
	_, err := pool.Exec(ctx, `CREATE TABLE orders (id text PRIMARY KEY, total numeric NOT NULL CHECK (total > 0))`)
	return err
}

//snippet:begin docs/testing.md
func TestAnOrderIsPlacedWithItsEvent(t *testing.T) {
	t.Parallel()
	w := waybilltest.Start(t)
	pool, err := pgxpool.New(t.Context(), w.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	if err := createTables(t.Context(), pool); err != nil { // those of the service, beside Waybill's
		t.Fatal(err)
	}
	if err := placeOrder(t.Context(), pool, Order{ID: "17", Total: 3}); err != nil {
		t.Fatal(err)
	}
	if err := placeOrder(t.Context(), pool, Order{ID: "18", Total: -1}); err == nil {
		t.Error("an order of less than nothing was placed")
	}
	placed := w.Expect(t, waybilltest.Filter{Source: "/orders"}, 1, 10*time.Second)
	if placed[0].Subject != "17" {
		t.Errorf("placed: %s", placed[0].Subject)
	}
}

//snippet:end

// mustConnect connects to a database until the test ends.
func mustConnect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) }) // its work is done
	return conn
}

// mustRun runs statements as psql does, and returns what each answers.
func mustRun(t *testing.T, conn *pgx.Conn, statements string) []*pgconn.Result {
	t.Helper()
	results, err := conn.PgConn().Exec(t.Context(), statements).ReadAll()
	if err != nil {
		t.Fatalf("%v, of:\n%s", err, statements)
	}
	return results
}

// mustRole makes a role of a name that no other test has, which may log in and make tables.
func mustRole(t *testing.T, conn *pgx.Conn) string {
	t.Helper()
	role := "waybill_test_" + strings.ToLower(rand.Text()[:16])
	mustRun(t, conn, `CREATE ROLE `+role+`; GRANT CREATE ON SCHEMA public TO `+role)
	t.Cleanup(func() {
		for _, statement := range []string{`ROLLBACK`, `RESET ROLE`, `DROP OWNED BY ` + role, `DROP ROLE ` + role} {
			if _, err := conn.Exec(context.Background(), statement); err != nil {
				t.Error(err)
			}
		}
	})
	return role
}

// subjects are those of events, in order.
func subjects(events []waybilltest.Event) []string {
	out := make([]string, len(events))
	for i, e := range events {
		out[i] = e.Subject
	}
	slices.Sort(out)
	return out
}

// The SQL of docs/outbox.md does what the page says, by a role that has the one right that the page gives it.
func TestSQLOfTheOutbox(t *testing.T) {
	t.Parallel()
	const theirs = "my_service" // as the page has it
	sql := fenced(mustReadPage(t, "docs/outbox.md"), "sql")
	if len(sql) != 4 {
		t.Fatalf("the page has %d blocks of SQL; here the grant, a transaction, a trigger and what is refused are run", len(sql))
	}
	grant, transaction, trigger, refused := sql[0], sql[1], sql[2], sql[3]
	w := waybilltest.Start(t)
	conn := mustConnect(t, w.DatabaseURL)
	role := mustRole(t, conn)
	if !strings.Contains(grant, theirs) {
		t.Fatalf("the grant is not for %s: %s", theirs, grant)
	}
	mustRun(t, conn, strings.ReplaceAll(grant, theirs, role))
	mustRun(t, conn, `SET ROLE `+role)
	mustRun(t, conn, sqlOfTheReadme(t)) // makes the table, for readers who come from there

	mustRun(t, conn, transaction)
	placed := waybilltest.Filter{Source: "/orders", Type: "com.example.order.placed"}
	got := w.Expect(t, placed, 1, patience)[0]
	if string(got.Data) != `{"id": 18, "total": 9.50}` || got.DataContentType != "application/json" {
		t.Errorf("placed: %s as %s", got.Data, got.DataContentType)
	}

	mustRun(t, conn, trigger)
	mustRun(t, conn, `INSERT INTO orders VALUES (19, 1), (20, 2); UPDATE orders SET total = 3 WHERE id = 19`)
	for kind, want := range map[string][]string{"insert": {"19", "20"}, "update": {"19"}} {
		changed := w.Expect(t, waybilltest.Filter{Type: "com.example.order." + kind}, len(want), patience)
		if got := subjects(changed); !slices.Equal(got, want) {
			t.Errorf("%s: events of the orders %q, want %q", kind, got, want)
		}
	}

	// A row of which no event can be made, of the id that the page has.
	mustRun(t, conn, `RESET ROLE; INSERT INTO waybill.outbox (id, source, type, event_id, event) VALUES (4711, '/orders', 't', 'e', '\x00')`)
	awaitRefused(t, conn)
	results := mustRun(t, conn, refused)
	if len(results) != 3 || len(results[0].Rows) != 1 || string(results[0].Rows[0][0]) != "4711" || string(results[1].Rows[0][0]) != "t" {
		t.Errorf("what is refused, and the row put back: %+v", results)
	}
	awaitRefused(t, conn)
}

// awaitRefused waits for a row of the outbox to be refused.
func awaitRefused(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for refused := false; !refused; time.Sleep(10 * time.Millisecond) {
		if err := conn.QueryRow(ctx, `SELECT count(*) > 0 FROM waybill.outbox WHERE refused_at IS NOT NULL`).Scan(&refused); err != nil {
			t.Fatalf("wait for a row to be refused: %v", err)
		}
	}
}

// sqlOfTheReadme is what README.md pipes into psql.
func sqlOfTheReadme(t *testing.T) string {
	t.Helper()
	_, rest, found := strings.Cut(mustReadPage(t, "README.md"), "psql \"$WAYBILL_DATABASE_URL\" <<'SQL'\n")
	sql, _, ended := strings.Cut(rest, "\n    SQL\n")
	if !found || !ended {
		t.Fatal("README.md has no SQL for psql")
	}
	return sql
}

// It makes an event.
func TestSQLOfTheReadme(t *testing.T) {
	t.Parallel()
	w := waybilltest.Start(t)
	mustRun(t, mustConnect(t, w.DatabaseURL), sqlOfTheReadme(t))
	w.Expect(t, waybilltest.Filter{Source: "/readme", Type: "order.placed"}, 1, patience)
}
