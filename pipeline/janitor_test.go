package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/waybillhq/waybill/internal/devstack"
	"github.com/waybillhq/waybill/internal/pgtest"
)

// rig is a store, a server and an ingester, without sinks: the test plays the forwarder.
type rig struct {
	url   string // of the database
	store *Store
	nats  *devstack.NATS
	queue *Queue
	nc    *nats.Conn
	in    *Ingester
	stop  func() // of in
}

func testJanitorConfig() JanitorConfig {
	c := DefaultJanitorConfig()
	c.UpkeepEvery, c.RetransmitEvery = 50*time.Millisecond, 100*time.Millisecond
	c.TrimEvery, c.ExpireEvery = 100*time.Millisecond, 100*time.Millisecond
	c.Queue.MaxBytes = 256 << 20
	return c
}

func mustRig(t testing.TB) *rig {
	t.Helper()
	return mustRigAt(t, pgtest.New(t))
}

// mustPatientRig is a rig whose ingester has all the time it needs for a publish, also when it is to stop, so that
// nothing is left to a janitor.
func mustPatientRig(t testing.TB) *rig {
	t.Helper()
	url, spec := pgtest.New(t), testSpec
	spec.Grace = 2 * patience
	if err := Migrate(t.Context(), url, spec); err != nil {
		t.Fatal(err)
	}
	cfg := DefaultIngesterConfig()
	cfg.StopTimeout = patience
	return mustRigWith(t, url, cfg)
}

func mustRigAt(t testing.TB, url string) *rig {
	t.Helper()
	return mustRigWith(t, url, DefaultIngesterConfig())
}

func mustRigWith(t testing.TB, url string, cfg IngesterConfig) *rig {
	t.Helper()
	r := &rig{url: url, store: mustStoreAt(t, url), nats: mustNATS(t)}
	r.queue, r.nc = mustQueue(t, r.nats)
	if err := r.queue.ensureStreams(t.Context(), testJanitorConfig().Queue, testSpec.Lanes); err != nil {
		t.Fatal(err)
	}
	in, err := NewIngester(cfg, r.store, r.queue, testLog(t), testMeter)
	if err != nil {
		t.Fatal(err)
	}
	r.in, r.stop = in, mustRun(t, in.Run)
	return r
}

// mustRun runs f until the test ends, or until the returned stop is called.
func mustRun(t testing.TB, f func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("run: %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}

func (r *rig) mustJanitor(t testing.TB, change func(*JanitorConfig)) (stop func()) {
	t.Helper()
	cfg := testJanitorConfig()
	if change != nil {
		change(&cfg)
	}
	j, err := NewJanitor(cfg, r.store, r.queue, testLog(t), testMeter)
	if err != nil {
		t.Fatal(err)
	}
	return mustRun(t, j.Run)
}

func (r *rig) mustAccept(t testing.TB, events ...Event) {
	t.Helper()
	if err := r.in.Accept(t.Context(), events); err != nil {
		t.Fatal(err)
	}
}

// take fetches the next batch of (sink, lane), or nil when none comes. As a forwarder does, it
// resets the consumer when a pull ends without a message: one that was on its way to that
// pull would be missed until AckWait is over.
func (r *rig) take(t testing.TB, sink string, lane int, wait time.Duration) (*Batch, jetstream.Msg) {
	t.Helper()
	deadline := time.Now().Add(wait)
	name := consumerName(sink, lane)
	for {
		c, err := r.queue.js.Consumer(t.Context(), EventsStream, name)
		if err == nil {
			msg, err := c.Next(jetstream.FetchMaxWait(min(max(time.Until(deadline), 100*time.Millisecond), 2*time.Second)))
			if err == nil {
				b, err := parseMessage(lane, msg.Headers(), msg.Data())
				if err != nil {
					t.Fatal(err)
				}
				return b, msg
			}
			reset, cancel := context.WithTimeout(t.Context(), time.Second)
			if _, err := r.queue.js.ResetConsumer(reset, EventsStream, name); err != nil {
				t.Logf("reset %s: %v", name, err)
			}
			cancel()
		}
		if time.Now().After(deadline) {
			return nil, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// mustDeliver plays a forwarder: receipt, then ack; the ack alone for what is meant for other
// sinks.
func (r *rig) mustDeliver(t testing.TB, sink string, b *Batch, msg jetstream.Msg) {
	t.Helper()
	if b == nil {
		t.Fatalf("%s: no batch came", sink)
	}
	if b.For(sink) {
		r.mustReceipt(t, Receipt{Sink: sink, Lane: b.Lane, Batches: []BatchReceipt{{ID: b.ID}}})
	}
	if err := msg.DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (r *rig) mustReceipt(t testing.TB, receipt Receipt) {
	t.Helper()
	data, err := json.Marshal(receipt)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.queue.js.Publish(t.Context(), receiptsSubject, data); err != nil {
		t.Fatal(err)
	}
}

func (r *rig) pending(t testing.TB) int {
	t.Helper()
	return mustCount(t, r.store, `SELECT count(*) FROM waybill.events`)
}

const testLane = 3

// laneEvent returns an event whose key is in testLane.
func laneEvent(t testing.TB, id string) Event {
	t.Helper()
	for i := 0; ; i++ {
		if s := fmt.Sprintf("/lane/%d", i); LaneOf(s, "t", testSpec.Lanes) == testLane {
			return mustEvent(t, s, "t", id)
		}
	}
}

func TestEventReachesBothSinksAndIsSettled(t *testing.T) {
	r := mustPatientRig(t)
	r.mustJanitor(t, nil)
	r.mustAccept(t, laneEvent(t, "a"), laneEvent(t, "b"))
	for _, sink := range testSpec.Sinks {
		b, msg := r.take(t, sink, testLane, patience)
		if b == nil || len(b.Events) != 2 || b.Attempt != 0 {
			t.Fatalf("%s got %+v", sink, b)
		}
		r.mustDeliver(t, sink, b, msg)
	}
	eventually(t, patience, "settled", func() bool { return r.pending(t) == 0 })
}

// What a janitor has gathered when it is to stop, another one has at once, and not when the ack wait is over.
func TestStopGivesReceiptsBack(t *testing.T) {
	r := mustRig(t)
	j, err := NewJanitor(testJanitorConfig(), r.store, r.queue, testLog(t), testMeter)
	if err != nil {
		t.Fatal(err)
	}
	consumer, err := r.queue.js.Consumer(t.Context(), ReceiptsStream, receiptsConsumer)
	if err != nil {
		t.Fatal(err)
	}
	r.mustReceipt(t, Receipt{Sink: "ingress", Batches: []BatchReceipt{{ID: BatchID{Number: 1, Token: 1}}}})
	msg, err := consumer.Next(jetstream.FetchMaxWait(patience))
	if err != nil {
		t.Fatal(err)
	}
	receipts, err := parseReceipts(msg.Data())
	if err != nil {
		t.Fatal(err)
	}
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	if err := j.settle(stopped, []receiptMsg{{receipts, msg, time.Now()}}); err != nil {
		t.Fatal(err)
	}
	if _, err := consumer.Next(jetstream.FetchMaxWait(consumer.CachedInfo().Config.AckWait / 2)); err != nil {
		t.Errorf("the receipt does not come again: %v", err)
	}
}

// Invariant 9: what is queued for a sink is not retransmitted, however long it waits.
func TestQueuedBatchesAreNotRetransmitted(t *testing.T) {
	t.Parallel()
	r := mustRig(t)
	r.mustJanitor(t, nil)
	r.mustAccept(t, laneEvent(t, "a"))
	b, msg := r.take(t, "ingress", testLane, patience)
	r.mustDeliver(t, "ingress", b, msg)
	// A loaded machine may have left it to the janitor, which then has put it into the queue.
	time.Sleep(testSpec.Grace + 2*time.Second) // several passes beyond the grace period
	if n := mustCount(t, r.store, `SELECT max(attempts) FROM waybill.batches`); n != b.Attempt {
		t.Fatalf("a batch that waits in the archive's queue was claimed %d times, and %d times before", n, b.Attempt)
	}
}

// Invariant 3: a requeued event, which is in no queue, is published although all else that
// waits is queued.
func TestRequeuedEventComesWithABacklog(t *testing.T) {
	r := mustRig(t)
	r.mustJanitor(t, nil)
	r.mustAccept(t, laneEvent(t, "a"))
	b, msg := r.take(t, "ingress", testLane, patience)
	r.mustReceipt(t, Receipt{Sink: "ingress", Lane: testLane, Batches: []BatchReceipt{{ID: b.ID, Refused: []Refusal{{Code: "NO", Reason: "not yet"}}}}})
	if err := msg.DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "the dead letter", func() bool {
		return mustCount(t, r.store, `SELECT count(*) FROM waybill.dead_letters`) == 1
	})
	r.mustAccept(t, laneEvent(t, "b"))
	// It stays un-acked. It is published after its answer, so it is awaited before there is anything else to publish.
	if b, _ := r.take(t, "ingress", testLane, patience); b == nil || b.Origin != nil {
		t.Fatalf("the backlog's batch is %+v", b)
	}
	if n := mustRequeue(t, r.store, LetterFilter{Sink: "ingress", Code: "NO"}); n != 1 {
		t.Fatalf("requeued %d", n)
	}
	eventually(t, patience, "the requeued event is published", func() bool {
		return mustCount(t, r.store, `SELECT count(*) FROM waybill.batches WHERE origin_position IS NOT NULL AND attempts > 0`) == 1
	})
}

// What waits and is queued is not walked over again and again.
func TestBacklogKnowsWhatMayBeStale(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		backlog Backlog
		want    bool
	}{
		{Backlog{OldestQueued: now}, false},
		{Backlog{OldestQueued: now.Add(time.Second)}, false},
		{Backlog{OldestQueued: now.Add(-time.Microsecond)}, true},
		{Backlog{OldestQueued: now.Add(time.Second), Unqueued: 1}, true},
		{Backlog{Unqueued: 1}, true},
	} {
		if got := c.backlog.stale(now); got != c.want {
			t.Errorf("%+v: %v", c.backlog, got)
		}
	}
}

// Invariant 9, with a clock of Postgres that jumped back: what was queued since is behind a
// message of the future, and all of it is older than that.
func TestQueueFromTheFutureIsNotRetransmitted(t *testing.T) {
	t.Parallel()
	r := mustRig(t)
	future := mustAppend(t, r.store, []Event{laneEvent(t, "future")})
	b := future.batches[0]
	b.QueuedAt = b.QueuedAt.Add(5 * time.Minute)
	if _, err := r.store.pool.Exec(t.Context(), `UPDATE waybill.batches SET queued_at = $1`, b.QueuedAt); err != nil {
		t.Fatal(err)
	}
	if _, err := r.queue.js.PublishMsg(t.Context(), b.message(future.bodies[0])); err != nil {
		t.Fatal(err)
	}
	r.mustJanitor(t, nil)
	for i := range 5 {
		r.mustAccept(t, laneEvent(t, fmt.Sprint(i)))
	}
	time.Sleep(testSpec.Grace + 2*time.Second) // several passes beyond the grace period
	if n := mustCount(t, r.store, `SELECT max(attempts) FROM waybill.batches`); n != 0 {
		t.Fatalf("a batch that waits behind one of the future was claimed %d times", n)
	}
	r.deliverAll(t, 6)
}

// Invariant 3, with a clock of Postgres that jumped back: what was queued in the future and is
// in no queue comes again at once, not when the clock has passed that time.
func TestLostBatchFromTheFutureIsRetransmitted(t *testing.T) {
	r := mustRig(t)
	mustAppend(t, r.store, []Event{laneEvent(t, "future")})
	if _, err := r.store.pool.Exec(t.Context(), `UPDATE waybill.batches SET queued_at = now() + interval '5 minutes'`); err != nil {
		t.Fatal(err)
	}
	r.mustJanitor(t, nil)
	for _, sink := range testSpec.Sinks {
		// The sink whose consumer is made first may have it in a message of its own.
		for mine := false; !mine; {
			b, msg := r.take(t, sink, testLane, patience)
			if b == nil || b.Attempt == 0 {
				t.Fatalf("%s got %+v, want a retransmit", sink, b)
			}
			mine = b.For(sink)
			r.mustDeliver(t, sink, b, msg)
		}
	}
	eventually(t, patience, "settled", func() bool { return r.pending(t) == 0 })
}

// Invariant 9: what was delivered and is not settled yet is not retransmitted.
func TestUnsettledReceiptsHoldBackTheRetransmit(t *testing.T) {
	r := mustPatientRig(t) // no janitor would publish what the ingester cannot in time
	// A janitor without its settling part: the receipt stays where it is.
	cfg := testJanitorConfig()
	cfg.BarrierTimeout = 300 * time.Millisecond
	j, err := NewJanitor(cfg, r.store, r.queue, testLog(t), testMeter)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.upkeep(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.mustAccept(t, laneEvent(t, "a"))
	for _, sink := range testSpec.Sinks {
		b, msg := r.take(t, sink, testLane, patience)
		r.mustDeliver(t, sink, b, msg)
	}
	mustBeOverdue(t, r.store)
	if _, err := j.retransmit(t.Context()); err == nil {
		t.Fatal("the pass did not wait for the receipts")
	}
	if n := mustCount(t, r.store, `SELECT max(attempts) FROM waybill.batches`); n != 0 {
		t.Fatal("a delivered batch was claimed before its receipt was settled")
	}
	r.mustJanitor(t, nil)
	eventually(t, patience, "settled", func() bool { return r.pending(t) == 0 })
}

// mustBeOverdue makes what waits as old as if the grace period were over.
func mustBeOverdue(t testing.TB, s *Store) {
	t.Helper()
	if _, err := s.pool.Exec(t.Context(), `UPDATE waybill.batches SET queued_at = queued_at - $1::interval`, s.Grace()+time.Second); err != nil {
		t.Fatal(err)
	}
}

// Invariant 3: a batch that is in no queue comes from Postgres.
func TestLostMessageIsRetransmittedToTheSinkThatLacksIt(t *testing.T) {
	r := mustPatientRig(t) // so that the janitor publishes it once, when it is lost
	r.mustJanitor(t, nil)
	r.mustAccept(t, laneEvent(t, "a"))
	b, msg := r.take(t, "ingress", testLane, patience)
	r.mustDeliver(t, "ingress", b, msg)
	// The archive loses the message: acked without a receipt.
	lost, msg := r.take(t, "archive", testLane, patience)
	if err := msg.DoubleAck(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustBeOverdue(t, r.store)
	again, msg := r.take(t, "archive", testLane, patience)
	if again == nil || again.ID != lost.ID || again.Attempt == 0 || again.For("ingress") || !again.For("archive") {
		t.Fatalf("got %+v, want a retransmit of %v for the archive alone", again, lost.ID)
	}
	r.mustDeliver(t, "archive", again, msg)
	eventually(t, patience, "settled", func() bool { return r.pending(t) == 0 })
}

// Invariant 3: the whole JetStream store may be lost.
func TestStoreWiped(t *testing.T) {
	r := mustRig(t)
	r.mustJanitor(t, nil)
	const n = 300
	for i := range n {
		r.mustAccept(t, laneEvent(t, fmt.Sprint(i)))
	}
	r.nats.Stop()
	if err := r.nats.WipeStore(); err != nil {
		t.Fatal(err)
	}
	if err := r.nats.Start(); err != nil {
		t.Fatal(err)
	}
	r.deliverAll(t, n)
}

// deliverAll plays both forwarders until nothing is pending, and checks that n events
// arrived at each sink that were not there before.
func (r *rig) deliverAll(t testing.TB, n int) {
	t.Helper()
	before := r.batches(t)
	for _, sink := range testSpec.Sinks {
		seen := map[BatchID]bool{}
		got := 0
		for got < n {
			b, msg := r.take(t, sink, testLane, patience)
			if b == nil {
				t.Fatalf("%s: %d of %d events arrived", sink, got, n)
			}
			// A consumer that is made before the other has its batches retransmitted first, in
			// messages of its own, which the other sees too.
			if _, waited := before[b.ID]; b.For(sink) && waited && !seen[b.ID] {
				got += len(b.Events)
				seen[b.ID] = true
			}
			r.mustDeliver(t, sink, b, msg)
		}
	}
	eventually(t, patience, "settled", func() bool { return r.pending(t) == 0 })
}

// batches returns what is not settled, and how often each was retransmitted.
func (r *rig) batches(t testing.TB) map[BatchID]int {
	t.Helper()
	rows, err := r.store.pool.Query(t.Context(), `SELECT batch, token, attempts FROM waybill.batches`)
	if err != nil {
		t.Fatal(err)
	}
	out := map[BatchID]int{}
	var number, token int64
	var attempts int
	if _, err := pgx.ForEachRow(rows, []any{&number, &token, &attempts}, func() error {
		out[BatchID{Number: number, Token: uint64(token)}] = attempts
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

// The newest part of the stream is lost: consumers stand beyond its end and would skip what
// comes next.
func TestStreamLostItsNewestPart(t *testing.T) {
	r := mustRig(t)
	stop := r.mustJanitor(t, nil)
	for i := range 20 {
		r.mustAccept(t, laneEvent(t, fmt.Sprint(i)))
	}
	r.deliverAll(t, 20)
	stop()
	// The same stream, consumers and positions, but a shorter log.
	stream, err := r.queue.js.Stream(t.Context(), EventsStream)
	if err != nil {
		t.Fatal(err)
	}
	for _, sink := range testSpec.Sinks {
		ahead := sinkConsumerConfig(testJanitorConfig().Queue, sink, testLane, 0)
		if err := stream.DeleteConsumer(t.Context(), ahead.Durable); err != nil {
			t.Fatal(err)
		}
		ahead.DeliverPolicy, ahead.OptStartSeq = jetstream.DeliverByStartSequencePolicy, 1000
		if _, err := stream.CreateConsumer(t.Context(), ahead); err != nil {
			t.Fatal(err)
		}
	}
	r.mustAccept(t, laneEvent(t, "after"))
	r.mustJanitor(t, nil)
	r.deliverAll(t, 1)
}

// A new sink gets what is accepted from then on; a consumer that was deleted begins with
// the oldest batch that waits for its sink.
func TestConsumersAreMadeWhereTheirSinkNeedsThem(t *testing.T) {
	t.Parallel()
	r := mustRig(t)
	r.mustJanitor(t, nil)
	for i := range 10 {
		r.mustAccept(t, laneEvent(t, fmt.Sprint(i)))
		for _, sink := range testSpec.Sinks {
			if i >= 7 && sink == "archive" {
				continue
			}
			b, msg := r.take(t, sink, testLane, patience)
			r.mustDeliver(t, sink, b, msg)
		}
	}
	eventually(t, patience, "3 left", func() bool { return r.pending(t) == 3 })
	time.Sleep(2 * testSpec.Grace) // so that the grace period does not blur the start
	// On a loaded machine their ingester may have left some to the janitor already.
	before := r.batches(t)
	if err := r.queue.js.DeleteConsumer(t.Context(), EventsStream, consumerName("archive", testLane)); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "settled", func() bool {
		if b, msg := r.take(t, "archive", testLane, time.Second); b != nil {
			if attempts, waits := before[b.ID]; waits && b.Attempt > attempts {
				t.Fatal("retransmitted, and not found in the stream")
			}
			r.mustDeliver(t, "archive", b, msg)
		}
		return r.pending(t) == 0
	})
	if _, err := r.store.pool.Exec(t.Context(), `INSERT INTO waybill.sinks (name) VALUES ('third')`); err != nil {
		t.Fatal(err)
	}
	r.mustAccept(t, laneEvent(t, "new"))
	b, _ := r.take(t, "third", testLane, patience)
	if b == nil || len(b.Events) != 1 {
		t.Fatalf("the new sink got %+v", b)
	}
	if err := r.store.RemoveSink(t.Context(), "third"); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "consumers of the removed sink deleted", func() bool {
		_, err := r.queue.js.Consumer(t.Context(), EventsStream, consumerName("third", testLane))
		return errors.Is(err, jetstream.ErrConsumerNotFound)
	})
}

// The stream keeps what the replay window holds, and what a sink lacks, and no more.
func TestTrimKeepsWhatASinkLacks(t *testing.T) {
	r := mustRig(t)
	r.mustJanitor(t, func(c *JanitorConfig) { c.ReplayWindow = 0 })
	for i := range 10 {
		r.mustAccept(t, laneEvent(t, fmt.Sprint(i)))
		b, msg := r.take(t, "ingress", testLane, patience)
		r.mustDeliver(t, "ingress", b, msg)
		if i < 4 {
			b, msg = r.take(t, "archive", testLane, patience)
			r.mustDeliver(t, "archive", b, msg)
		}
	}
	first := func() uint64 {
		s, err := r.queue.js.Stream(t.Context(), EventsStream)
		if err != nil {
			t.Fatal(err)
		}
		return s.CachedInfo().State.FirstSeq
	}
	eventually(t, patience, "trimmed to the archive's floor", func() bool { return first() == 5 })
	time.Sleep(500 * time.Millisecond)
	if f := first(); f != 5 {
		t.Fatalf("the stream begins at %d: what the archive lacks was deleted", f)
	}
	r.deliverArchive(t, 6)
	eventually(t, patience, "trimmed whole", func() bool { return first() == 11 })
}

func (r *rig) deliverArchive(t testing.TB, n int) {
	t.Helper()
	for range n {
		b, msg := r.take(t, "archive", testLane, patience)
		if b == nil {
			t.Fatal("the archive's queue is empty")
		}
		r.mustDeliver(t, "archive", b, msg)
	}
}

// A sink that is down must not fill the queue for the other: the oldest are shed, and come
// back from Postgres a bounded amount at a time.
func TestShedAndRetransmit(t *testing.T) {
	r := mustRig(t)
	r.mustJanitor(t, func(c *JanitorConfig) { c.Queue.MaxBytes = 64 << 20 })
	payload := make([]byte, 500<<10)
	const n = 200 // 100 MB through 64 MiB
	for i := range n {
		e := laneEvent(t, fmt.Sprint(i))
		e.Encoded = append(e.Encoded, 0x32, 0x80, 0xc2, 0x1f) // binary_data of 512,256 bytes
		e.Encoded = append(e.Encoded, payload...)
		e.Encoded = append(e.Encoded, make([]byte, 0x7e100-len(payload))...)
		r.mustAccept(t, e)
		b, msg := r.take(t, "ingress", testLane, patience)
		if b == nil {
			t.Fatalf("ingress got no event %d: the archive's backlog filled the queue", i)
		}
		if b.For("ingress") {
			r.mustDeliver(t, "ingress", b, msg)
		}
	}
	got := map[BatchID]bool{}
	for len(got) < n {
		b, msg := r.take(t, "archive", testLane, patience)
		if b == nil {
			t.Fatalf("the archive got %d of %d", len(got), n)
		}
		if b.For("archive") {
			got[b.ID] = true
		}
		r.mustDeliver(t, "archive", b, msg)
	}
	eventually(t, patience, "settled", func() bool { return r.pending(t) == 0 })
}

func TestMalformedReceiptIsDropped(t *testing.T) {
	r := mustRig(t)
	r.mustJanitor(t, nil)
	if _, err := r.queue.js.Publish(t.Context(), receiptsSubject, []byte("{")); err != nil {
		t.Fatal(err)
	}
	r.mustAccept(t, laneEvent(t, "a"))
	r.deliverAll(t, 1)
	eventually(t, patience, "receipts are gone", func() bool {
		s, err := r.queue.js.Stream(t.Context(), ReceiptsStream)
		return err == nil && s.CachedInfo().State.Msgs == 0
	})
}

// A receipt that Postgres refuses spoils none of those beside it.
func TestRefusedReceiptSpoilsNoOther(t *testing.T) {
	r := mustRig(t)
	r.mustJanitor(t, nil)
	r.mustAccept(t, laneEvent(t, "a"))
	batch, _ := r.take(t, "ingress", testLane, patience)
	if batch == nil {
		t.Fatal("the batch is not queued")
	}
	var body []byte
	for _, sink := range []string{"ingress\x00", "archive", "ingress"} {
		line, err := json.Marshal(Receipt{Sink: sink, Lane: testLane, Batches: []BatchReceipt{{ID: batch.ID}}})
		if err != nil {
			t.Fatal(err)
		}
		if body != nil {
			body = append(body, '\n')
		}
		body = append(body, line...)
	}
	if _, err := r.queue.js.Publish(t.Context(), receiptsSubject, body); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "settled", func() bool { return r.pending(t) == 0 })
	eventually(t, patience, "the message is gone", func() bool {
		s, err := r.queue.js.Stream(t.Context(), ReceiptsStream)
		return err == nil && s.CachedInfo().State.Msgs == 0
	})
}

// Two janitors share the receipts and the periodic work.
func TestTwoJanitors(t *testing.T) {
	r := mustRig(t)
	r.mustJanitor(t, nil)
	r.mustJanitor(t, nil)
	const n = 200
	for i := range n {
		r.mustAccept(t, laneEvent(t, fmt.Sprint(i)))
	}
	r.deliverAll(t, n)
}

func TestCheckSaysWhatDoesNotFit(t *testing.T) {
	n := mustNATS(t)
	q, _ := mustQueue(t, n)
	if err := q.Check(t.Context(), 4, 0); !errors.Is(err, ErrNotReady) {
		t.Fatalf("nothing there: %v", err)
	}
	if err := q.ensureStreams(t.Context(), testJanitorConfig().Queue, 4); err != nil {
		t.Fatal(err)
	}
	if err := q.Check(t.Context(), 4, DefaultMaxEventBytes); err != nil {
		t.Fatal(err)
	}
	if err := q.Check(t.Context(), 8, 0); err == nil || errors.Is(err, ErrNotReady) {
		t.Fatalf("other lanes: %v", err)
	}
	if err := q.Check(t.Context(), 4, 8<<20); err == nil || errors.Is(err, ErrNotReady) {
		t.Fatalf("max_payload too small: %v", err)
	}
}

// A batch that the server finds too large must not hold up those behind it.
func TestUnpublishableBatchHoldsNobodyUp(t *testing.T) {
	options := devstack.DefaultNATSOptions(t.TempDir())
	options.MaxPayload = 64 << 10
	n, err := devstack.StartNATS(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Stop)
	r := &rig{store: mustStore(t), nats: n}
	r.queue, r.nc = mustQueue(t, n)
	large := laneEvent(t, "large")
	large.Encoded = append(large.Encoded, 0x32, 0xa0, 0x8d, 0x06) // binary_data of 100,000 bytes
	large.Encoded = append(large.Encoded, make([]byte, 100_000)...)
	mustAppend(t, r.store, []Event{large})
	for i := range 20 {
		mustAppend(t, r.store, []Event{laneEvent(t, fmt.Sprint(i))})
	}
	r.mustJanitor(t, nil)
	for i := range 20 {
		b, msg := r.take(t, "ingress", testLane, patience)
		if b == nil {
			t.Fatalf("%d of 20 batches behind the large one were published", i)
		}
		r.mustDeliver(t, "ingress", b, msg)
	}
}

// A transaction that takes too long is tried in halves, so that one batch that is locked, or
// too much at a time, does not stop the others.
func TestSettleGoesOnInHalves(t *testing.T) {
	url := pgtest.New(t)
	cfg := DefaultStoreConfig(url)
	cfg.StatementTimeout = time.Second
	hurried, err := OpenStore(t.Context(), cfg, testSpec.Lanes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(hurried.Close)
	s := mustStoreAt(t, url)
	r := &rig{store: s, nats: mustNATS(t)}
	r.queue, r.nc = mustQueue(t, r.nats)
	var batches []Batch
	for range 8 {
		batches = append(batches, mustAppend(t, s, mustEvents(t, 1, 1)).batches[0])
	}
	tx, err := s.pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())
	last := batches[len(batches)-1]
	if _, err := tx.Exec(t.Context(), `SET LOCAL idle_in_transaction_session_timeout = 0`); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `SELECT 1 FROM waybill.batches WHERE batch = $1 FOR UPDATE`, last.ID.Number); err != nil {
		t.Fatal(err)
	}
	j, err := NewJanitor(testJanitorConfig(), hurried, r.queue, testLog(t), testMeter)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		done <- j.commit(t.Context(), []Receipt{receiptFor("archive", batches...), receiptFor("ingress", batches...)})
	}()
	eventually(t, patience, "all but the locked batch lack one sink only", func() bool {
		return mustCount(t, s, `SELECT count(*) FROM waybill.batches WHERE cardinality(waiting_for) = 2`) <= 2
	})
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n := r.pending(t); n != 0 {
		t.Fatalf("%d events left", n)
	}
}
