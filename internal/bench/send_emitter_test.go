package bench

import (
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/internal/devstack"
	"github.com/waybillhq/waybill/internal/pgtest"
)

// An emitter's calls are events under the ledger's ids, with the data of the load.
func TestEmitterSenderEmits(t *testing.T) {
	nats, err := devstack.StartNATS(devstack.DefaultNATSOptions(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nats.Stop() })
	database := pgtest.New(t)
	l := newLedger(time.Now())
	load := embeddedLoad{callers: 4, bytes: 100}.load("test")
	load.Count = 20
	g, err := newGenerator(load, l, addresses{database: database, nats: nats.URL()})
	if err != nil {
		t.Fatal(err)
	}
	g.openWindow(time.Now())
	g.run(t.Context(), make(chan struct{}))
	if err := g.sender.close(); err != nil {
		t.Fatal(err)
	}
	if accepted := l.accepted.Load(); accepted != 20 {
		t.Fatalf("%d of 20 events were accepted: %v", accepted, g.errs)
	}
	conn, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	rows, err := conn.Query(t.Context(), `SELECT event_id FROM waybill.events WHERE length(event) > 100`)
	if err != nil {
		t.Fatal(err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int64]bool{}
	for _, id := range ids {
		n, ok := l.parseID([]byte(id))
		if !ok || seen[n] {
			t.Errorf("the id %s is not of the ledger, or there twice", id)
		}
		seen[n] = true
	}
	if len(seen) != 20 {
		t.Errorf("%d of 20 events are stored with their data", len(seen))
	}
}

// --part picks loads by a piece of their names.
func TestEmbeddedParts(t *testing.T) {
	all, err := embeddedLoads(Settings{})
	if err != nil || len(all) != 16 {
		t.Fatalf("%d loads, %v; want 2 delays times 2 sizes times 3 numbers of callers, these with one key, and an outage", len(all), err)
	}
	for part, want := range map[string]int{"outage": 1, "10 callers, 1024 B": 2, "256 B, endpoint answers after 0s": 3} {
		if loads, err := embeddedLoads(Settings{Part: &part}); err != nil || len(loads) != want {
			t.Errorf("%q: %v, %v; want %d", part, loads, err, want)
		}
	}
	none := "nobody"
	if _, err := embeddedLoads(Settings{Part: &none}); err == nil || !strings.Contains(err.Error(), "1000 callers, 256 B, outage") {
		t.Errorf("an unknown part is %v", err)
	}
}
