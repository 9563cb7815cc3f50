package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
)

// mustLaneRig is a rig whose queue is complete, with the shortest TTL of heartbeats there is,
// and whose ingester does not run: nobody is alive.
func mustLaneRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{store: mustStore(t), nats: mustNATS(t)}
	r.url = r.store.pool.Config().ConnString()
	r.queue, r.nc = mustQueue(t, r.nats)
	if err := EnsureQueue(t.Context(), laneQueueConfig(), r.store, r.queue, testLog(t)); err != nil {
		t.Fatal(err)
	}
	return r
}

func laneQueueConfig() QueueConfig {
	c := testJanitorConfig().Queue
	c.LeaseTTL = testLeaseTTL
	return c
}

func (r *rig) changeLanes(t testing.TB, lanes int) (LanesChanged, error) {
	t.Helper()
	return ChangeLanes(t.Context(), r.url, r.queue, lanes, func(string) {})
}

func (r *rig) lanes(t testing.TB) (inPostgres int, inQueue string) {
	t.Helper()
	stream, err := r.queue.js.Stream(t.Context(), EventsStream)
	if err != nil {
		t.Fatal(err)
	}
	return mustCount(t, r.store, `SELECT lanes FROM waybill.pipeline`), stream.CachedInfo().Config.Metadata[lanesMetadata]
}

func (r *rig) consumers(t testing.TB) (names []string) {
	t.Helper()
	f, err := r.queue.readFloors(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name := range f.byName {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// mustNotChange wants a refusal that names each text, and that nothing was changed.
func (r *rig) mustNotChange(t testing.TB, texts ...string) {
	t.Helper()
	_, err := r.changeLanes(t, 2)
	var not *NotDrainedError
	if !errors.As(err, &not) {
		t.Errorf("it is not refused: %v", err)
		return
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("%q does not say %q", err, text)
		}
	}
	if lanes, marked := r.lanes(t); lanes != 4 || marked != "4" || len(r.consumers(t)) != 8 {
		t.Errorf("%d lanes, %s in the queue, consumers %v", lanes, marked, r.consumers(t))
	}
}

func TestChangeLanesWaitsForNothing(t *testing.T) {
	t.Parallel()
	r := mustLaneRig(t)
	b := mustAppend(t, r.store, mustEvents(t, 1, 1)).batches[0]
	mustSettle(t, r.store, receiptFor("ingress", b))
	r.mustNotChange(t, "batches wait for archive (1)", "waybill status")
	r.mustReceipt(t, receiptFor("archive", b))
	r.mustNotChange(t, "batches wait for archive (1)", "receipts are not settled (1)", "start a janitor")
	mustSettle(t, r.store, receiptFor("archive", b))
	r.mustNotChange(t, "receipts are not settled (1)")
}

func TestChangeLanesNeedsSilence(t *testing.T) {
	t.Parallel()
	r := mustLaneRig(t)
	for _, kind := range Kinds() {
		beat := NewHeartbeat(kind, "it", "test")
		stop := mustRun(t, func(ctx context.Context) error {
			return RunHeartbeat(ctx, r.queue, slog.New(slog.DiscardHandler), func() Heartbeat { return beat })
		})
		eventually(t, patience, "it is alive", func() bool {
			live, err := LiveProcesses(t.Context(), r.queue, kind)
			return err == nil && len(live) == 1
		})
		r.mustNotChange(t, kind+" it is alive", "stop it")
		stop()
	}
	kv, err := r.queue.js.KeyValue(t.Context(), leasesBucket)
	if err != nil {
		t.Fatal(err)
	}
	holder, _ := json.Marshal(LeaseHolder{Forwarder: "dead", Instance: "x"})
	if _, err := kv.Put(t.Context(), SinkLane{Sink: "ingress", Lane: 3}.leaseKey(), holder); err != nil {
		t.Fatal(err)
	}
	r.mustNotChange(t, "lane 3 of ingress is leased to forwarder dead")
}

// A process that read the old number just before the change, and says so only later, is named.
func TestChangeLanesNamesWhoSlippedIn(t *testing.T) {
	t.Parallel()
	r := mustLaneRig(t)
	looks := 0
	done, err := ChangeLanes(t.Context(), r.url, r.queue, 2, func(string) {
		if looks++; looks == 2 {
			mustRun(t, func(ctx context.Context) error {
				return RunHeartbeat(ctx, r.queue, slog.New(slog.DiscardHandler), func() Heartbeat { return NewHeartbeat(KindIngest, "late", "test") })
			})
		}
	})
	if err != nil || len(done.Intruders) != 1 || !strings.Contains(done.Intruders[0], "ingest late is alive") {
		t.Errorf("%+v, %v", done, err)
	}
}

// A transaction that is appending when the check begins is waited for, and then its batch is
// seen; what comes later waits, and meets the new number.
func TestChangeLanesLetsNobodySlipIn(t *testing.T) {
	t.Parallel()
	r := mustLaneRig(t)
	tx, err := r.store.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	if _, err := tx.Exec(t.Context(), `INSERT INTO waybill.batches (batch, token, lane, events, bytes, waiting_for) VALUES (1, 1, 3, 1, 1, '{archive}')`); err != nil {
		t.Fatal(err)
	}
	refused := make(chan error, 1)
	go func() {
		_, err := ChangeLanes(context.Background(), r.url, r.queue, 2, func(string) {})
		refused <- err
	}()
	eventually(t, patience, "the change waits for the append", func() bool {
		return mustCount(t, r.store, `SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'`) > 0
	})
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	var not *NotDrainedError
	if err := <-refused; !errors.As(err, &not) || !strings.Contains(err.Error(), "batches wait for archive (1)") {
		t.Fatalf("it is not refused: %v", err)
	}
}

// An ingest that lived on with the old number cannot append to a lane that nobody serves, and
// its producers are told to try again.
func TestAppendAfterTheLanesShrank(t *testing.T) {
	t.Parallel()
	r := mustLaneRig(t)
	if _, err := r.changeLanes(t, 2); err != nil {
		t.Fatal(err)
	}
	refused := 0
	for _, n := range []int{1, smallFlush + 1} {
		for key := range 40 {
			events := mustEvents(t, n, 1)
			for i := range events {
				events[i] = mustEvent(t, fmt.Sprintf("/source/%d", key), "t", fmt.Sprint(i))
			}
			_, err := r.store.Append(t.Context(), events, 0, 1<<20)
			if old := LaneOf(events[0].Source, "t", 4); (old >= 2) != (err != nil) || err != nil && !errors.Is(err, ErrUnavailable) {
				t.Fatalf("lane %d: %v", old, err)
			}
			if err != nil {
				refused++
			}
		}
	}
	if refused == 0 || mustCount(t, r.store, `SELECT count(*) FROM waybill.batches WHERE lane > 1`) > 0 {
		t.Errorf("%d refused", refused)
	}
	assertDense(t, r.store)
}

// Wherever it dies, no process starts, and the same command finishes it. It may also be
// finished back to the old number while Postgres still has that.
func TestChangeLanesIsFinishedLater(t *testing.T) {
	t.Parallel()
	for name, died := range map[string]func(*laneChange) error{
		"before the commit": func(c *laneChange) error { return c.mark(context.Background(), lanesChanging(4, c.to)) },
		"after the commit": func(c *laneChange) error {
			_, err := c.inPostgres(context.Background())
			return err
		},
		"before the last mark": func(c *laneChange) error {
			if _, err := c.inPostgres(context.Background()); err != nil {
				return err
			}
			_, err := c.inQueue(context.Background())
			return errors.Join(err, c.mark(context.Background(), lanesChanging(4, c.to)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := mustLaneRig(t)
			conn, err := r.store.pool.Acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Release()
			if err := died(&laneChange{db: conn.Conn(), queue: r.queue, to: 2, log: func(string) {}}); err != nil {
				t.Fatal(err)
			}
			for _, lanes := range []int{2, 4} {
				if err := r.queue.Check(t.Context(), lanes, 0); err == nil || !strings.Contains(err.Error(), "waybill migrate --change-lanes --lanes=2") {
					t.Errorf("a process with %d lanes: %v", lanes, err)
				}
			}
			if _, err := r.changeLanes(t, 2); err != nil {
				t.Fatal(err)
			}
			if lanes, marked := r.lanes(t); lanes != 2 || marked != "2" {
				t.Errorf("%d lanes, %s in the queue", lanes, marked)
			}
			if got := strings.Join(r.consumers(t), " "); got != "archive-0 archive-1 ingress-0 ingress-1" {
				t.Errorf("consumers %s", got)
			}
		})
	}
	t.Run("back", func(t *testing.T) {
		r := mustLaneRig(t)
		if err := (&laneChange{queue: r.queue, to: 2}).mark(t.Context(), lanesChanging(4, 2)); err != nil {
			t.Fatal(err)
		}
		if _, err := r.changeLanes(t, 4); err != nil {
			t.Fatal(err)
		}
		if lanes, marked := r.lanes(t); lanes != 4 || marked != "4" || len(r.consumers(t)) != 8 {
			t.Errorf("%d lanes, %s in the queue, consumers %v", lanes, marked, r.consumers(t))
		}
	})
}

// Two operators at once, with other numbers: one of them, or one after the other.
func TestChangeLanesTwiceAtOnce(t *testing.T) {
	t.Parallel()
	r := mustLaneRig(t)
	var wg sync.WaitGroup
	errs := make([]error, 2)
	for i, lanes := range []int{2, 7} {
		wg.Go(func() { _, errs[i] = ChangeLanes(context.Background(), r.url, r.queue, lanes, func(string) {}) })
	}
	wg.Wait()
	failed := 0
	for _, err := range errs {
		if err != nil {
			failed++
			if !strings.Contains(err.Error(), "somebody else") {
				t.Error(err)
			}
		}
	}
	lanes, marked := r.lanes(t)
	if failed > 1 || lanes == 4 || marked != fmt.Sprint(lanes) {
		t.Errorf("%d failed, %d lanes, %s in the queue", failed, lanes, marked)
	}
}

// The stream keeps its messages, and a new lane begins behind them.
func TestChangeLanesKeepsTheReplayLog(t *testing.T) {
	t.Parallel()
	r := mustLaneRig(t)
	if _, err := r.queue.js.Publish(t.Context(), eventSubject(3), []byte("x")); err != nil {
		t.Fatal(err)
	}
	for _, lanes := range []int{2, 9} {
		if _, err := r.changeLanes(t, lanes); err != nil {
			t.Fatal(err)
		}
		s, err := OpenStore(t.Context(), DefaultStoreConfig(r.url), lanes)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if err := EnsureQueue(t.Context(), laneQueueConfig(), s, r.queue, testLog(t)); err != nil {
			t.Fatal(err)
		}
		if n := len(r.consumers(t)); n != 2*lanes {
			t.Errorf("%d consumers for %d lanes", n, lanes)
		}
	}
	stream, err := r.queue.js.Stream(t.Context(), EventsStream)
	if err != nil || stream.CachedInfo().State.Msgs != 1 {
		t.Fatalf("%+v, %v", stream.CachedInfo().State, err)
	}
	c, err := r.queue.js.Consumer(t.Context(), EventsStream, "archive-3")
	if err != nil || c.CachedInfo().NumPending != 0 || c.CachedInfo().Config.DeliverPolicy != jetstream.DeliverByStartSequencePolicy {
		t.Errorf("%+v, %v", c.CachedInfo(), err)
	}
}

func TestChangeLanesSaysWhatIsMissing(t *testing.T) {
	r := mustLaneRig(t)
	for _, lanes := range []int{0, MaxLanes + 1} {
		if _, err := r.changeLanes(t, lanes); err == nil || !strings.Contains(err.Error(), "want 1 to") {
			t.Errorf("%d lanes: %v", lanes, err)
		}
	}
	if err := r.queue.js.DeleteStream(t.Context(), EventsStream); err != nil {
		t.Fatal(err)
	}
	if _, err := r.changeLanes(t, 2); err == nil || !strings.Contains(err.Error(), "waybill migrate") {
		t.Errorf("no stream: %v", err)
	}
	if err := EnsureQueue(t.Context(), laneQueueConfig(), r.store, r.queue, testLog(t)); err != nil {
		t.Fatal(err)
	}
	if err := r.queue.js.DeleteKeyValue(t.Context(), heartbeatsBucket); err != nil {
		t.Fatal(err)
	}
	if _, err := r.changeLanes(t, 2); err == nil || !strings.Contains(err.Error(), "waybill migrate") {
		t.Errorf("no heartbeats: %v", err)
	}
	if lanes, marked := r.lanes(t); lanes != 4 || marked != "4" {
		t.Errorf("%d lanes, %s in the queue", lanes, marked)
	}
}
