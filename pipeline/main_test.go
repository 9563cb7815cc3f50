package pipeline

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/waybillhq/waybill/internal/devstack"
	"github.com/waybillhq/waybill/internal/pgtest"
)

// testSpec is the pipeline of the tests: few lanes, and a short grace, half of which is enough
// for a publish on a loaded machine.
var testSpec = Spec{Lanes: 4, Sinks: []string{"ingress", "archive"}, Grace: 3 * time.Second}

const (
	// patience bounds a wait for what must come about; no test waits for it to pass.
	patience = time.Minute
	// testLeaseTTL is short, for the tests that wait for a lease to expire, and so long that a
	// loaded machine does not make a forwarder lose one.
	testLeaseTTL = 4 * time.Second
)

var testMeter = noop.NewMeterProvider().Meter("test")

func TestMain(m *testing.M) {
	if os.Getenv(childDatabaseEnv) != "" { // this is not the test but a process that it kills
		if err := emitUntilKilled(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1)
	}
	// Tests that are parallel here wait, for a heartbeat or a lease to be over, and hardly compute.
	if err := flag.Set("test.parallel", "8"); err != nil { // -parallel counts, if it is given
		panic(err)
	}
	pgtest.Main(m, pgtest.Options{Template: func(ctx context.Context, url string) error {
		return Migrate(ctx, url, testSpec)
	}})
}

// testLog writes to the test's log when WAYBILL_TEST_LOG is set.
func testLog(t testing.TB) *slog.Logger {
	if os.Getenv("WAYBILL_TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

// mustStore opens a store on a database of its own.
func mustStore(t testing.TB) *Store {
	t.Helper()
	return mustStoreAt(t, pgtest.New(t))
}

func mustStoreAt(t testing.TB, url string) *Store {
	t.Helper()
	cfg := DefaultStoreConfig(url)
	// Only tests of the limits want them: a loaded machine may take longer for anything.
	cfg.LockTimeout, cfg.StatementTimeout, cfg.IdleInTransactionTimeout = patience, patience, patience
	s, err := OpenStore(t.Context(), cfg, testSpec.Lanes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// mustStoreWith opens a store with limits that a loaded machine may pass a few times before it is open.
func mustStoreWith(t testing.TB, cfg StoreConfig) (s *Store) {
	t.Helper()
	eventually(t, patience, "the store is open", func() (open bool) {
		var err error
		s, err = OpenStore(t.Context(), cfg, testSpec.Lanes)
		return err == nil
	})
	t.Cleanup(s.Close)
	return s
}

// mustAddKeys makes heads for the keys of events.
func mustAddKeys(t testing.TB, s *Store, events []Event) {
	t.Helper()
	f, err := newFlush(events, s.lanes, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	sources, types, _ := keyColumns(f.keys)
	if _, err := s.pool.Exec(t.Context(), addKeysSQL, sources, types); err != nil {
		t.Fatal(err)
	}
}

// mustNATS starts a server of its own.
func mustNATS(t testing.TB) *devstack.NATS {
	t.Helper()
	n, err := devstack.StartNATS(devstack.DefaultNATSOptions(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Stop() })
	return n
}

// mustQueue connects to a server, without making the streams.
func mustQueue(t testing.TB, n *devstack.NATS) (*Queue, *nats.Conn) {
	t.Helper()
	nc, err := ConnectNATS(n.URL(), t.Name())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	q, err := NewQueue(nc)
	if err != nil {
		t.Fatal(err)
	}
	return q, nc
}

// mustEvent makes a valid event.
func mustEvent(t testing.TB, source, typ, id string) Event {
	t.Helper()
	e, err := NewEvent(&pb.CloudEvent{
		Id: id, Source: source, Type: typ, SpecVersion: "1.0",
		Attributes: map[string]*pb.CloudEventAttributeValue{
			"datacontenttype": {Attr: &pb.CloudEventAttributeValue_CeString{CeString: "text/plain"}},
		},
		Data: &pb.CloudEvent_TextData{TextData: "payload of " + id},
	}, DefaultMaxEventBytes)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// mustEvents makes n events spread over keys.
func mustEvents(t testing.TB, n, keys int) []Event {
	t.Helper()
	events := make([]Event, n)
	for i := range events {
		events[i] = mustEvent(t, fmt.Sprintf("/source/%d", i%keys), "test.event", fmt.Sprintf("e%d", i))
	}
	return events
}

// eventually waits until ok says so, at most for within.
func eventually(t testing.TB, within time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(within)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", within, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func mustProducerMetrics(t testing.TB) *producerMetrics {
	t.Helper()
	m, err := newProducerMetrics(testMeter)
	if err != nil {
		t.Fatal(err)
	}
	return m
}
