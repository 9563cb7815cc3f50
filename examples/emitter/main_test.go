package main

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/internal/devstack"
	"github.com/waybillhq/waybill/internal/pgtest"
	"github.com/waybillhq/waybill/pipeline"
)

func TestMain(m *testing.M) {
	pgtest.Main(m, pgtest.Options{Template: func(ctx context.Context, url string) error {
		return pipeline.Migrate(ctx, url, pipeline.DefaultSpec())
	}})
}

// mustPipeline makes a pipeline's database and streams.
func mustPipeline(t *testing.T) (databaseURL, natsURL string) {
	t.Helper()
	databaseURL = pgtest.New(t)
	server, err := devstack.StartNATS(devstack.DefaultNATSOptions(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Stop() })
	nc, err := pipeline.ConnectNATS(server.URL(), t.Name())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	queue, err := pipeline.NewQueue(nc)
	if err != nil {
		t.Fatal(err)
	}
	store, err := pipeline.OpenStore(t.Context(), pipeline.DefaultStoreConfig(databaseURL), 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	if err := pipeline.EnsureQueue(t.Context(), pipeline.DefaultQueueConfig(), store, queue, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	return databaseURL, server.URL()
}

func TestOrdersAreStored(t *testing.T) {
	databaseURL, natsURL := mustPipeline(t)
	var out strings.Builder
	if err := run(t.Context(), databaseURL, natsURL, 10, &out); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "10 orders are placed") {
		t.Errorf("it said %q", out.String())
	}
	conn, err := pgx.Connect(t.Context(), databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var orders, subjects int
	if err := conn.QueryRow(t.Context(), `
		SELECT count(DISTINCT event_id), count(*) FILTER (WHERE position('order/' IN encode(event, 'escape')) > 0)
		FROM waybill.events WHERE source = '/examples/emitter' AND type = 'order.placed'`).Scan(&orders, &subjects); err != nil {
		t.Fatal(err)
	}
	if orders != 10 || subjects != 10 {
		t.Errorf("%d orders are stored, %d with a subject; want 10", orders, subjects)
	}
}

// A database that is not migrated is waited for until the program is told to stop, and the error
// says what was missing.
func TestStopWhileTheDatabaseIsNotMigrated(t *testing.T) {
	_, natsURL := mustPipeline(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	err := run(ctx, pgtest.NewEmpty(t), natsURL, 1, new(strings.Builder))
	if err == nil || !strings.Contains(err.Error(), "waybill migrate") {
		t.Errorf("it ended with %v", err)
	}
}
