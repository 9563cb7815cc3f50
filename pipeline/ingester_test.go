package pipeline

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"

	"github.com/waybillhq/waybill/internal/pgtest"
)

// Invariant 1: the OK comes after the commit. The commit waits for a locked head.
func TestAcceptedMeansCommitted(t *testing.T) {
	r := mustRig(t)
	r.mustAccept(t, mustEvents(t, 1, 1)...)
	release := mustHoldHeads(t, r.store)
	done := r.in.Submit(mustEvents(t, 1, 1))
	select {
	case err := <-done:
		t.Fatalf("answered %v before the commit", err)
	case <-time.After(500 * time.Millisecond):
	}
	release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n := r.pending(t); n != 2 {
		t.Fatalf("%d events stored, want 2", n)
	}
}

// answerFunc is told of an answer as a caller is.
type answerFunc func(error)

func (f answerFunc) answer(err error) { f(err) }

// Who waits for an answer has it before the lane that publishes is woken, which could take the processor
// from them; when all have theirs, nothing is left lying.
func TestAnswersComeBeforePublishing(t *testing.T) {
	r := mustPatientRig(t)
	event := mustEvent(t, "/s", "t", "1")
	lane := &r.in.publisher.lanes[LaneOf(event.Source, event.Type, r.store.Lanes())]
	asleep := make(chan bool, 1)
	r.in.submit(&unit{events: []Event{event}, asked: answerFunc(func(err error) {
		if err != nil {
			t.Error(err)
		}
		p := r.in.publisher
		p.mu.Lock()
		defer p.mu.Unlock()
		asleep <- len(lane.queue) == 1 && len(lane.wake) == 0 && slices.Contains(p.asleep, lane)
	})})
	if !<-asleep {
		t.Error("the lane is awake, or has published its batch, while the caller is answered")
	}
	r.queued(t, 1)
}

// Invariant 1: whatever the database's default is.
func TestCommitsAreSynchronous(t *testing.T) {
	u, err := url.Parse(pgtest.New(t))
	if err != nil {
		t.Fatal(err)
	}
	query := u.Query()
	query.Set("synchronous_commit", "off")
	query.Set("default_transaction_isolation", "repeatable read")
	u.RawQuery = query.Encode()
	s := mustStoreAt(t, u.String())
	for name, want := range map[string]string{"synchronous_commit": "on", "default_transaction_isolation": "read committed"} {
		var value string
		if err := s.pool.QueryRow(t.Context(), `SHOW `+name).Scan(&value); err != nil || value != want {
			t.Errorf("%s is %q, %v; want %s", name, value, err, want)
		}
	}
}

// Invariant 5: what comes in through one ingest for a key is queued in seqnum order: by many
// callers who wait for each answer, and by one who does not, so that many small batches of
// a lane wait to be published.
func TestQueueIsInSeqnumOrder(t *testing.T) {
	r := mustPatientRig(t)
	const callers, each = 16, 20
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for i := range each {
				if err := r.in.Accept(t.Context(), []Event{mustEvent(t, fmt.Sprint("/s/", c%3), "t", fmt.Sprintf("%d-%d", c, i))}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	cfg := DefaultIngesterConfig()
	cfg.FlushEvents = 1
	in, err := NewIngester(cfg, r.store, r.queue, testLog(t), testMeter)
	if err != nil {
		t.Fatal(err)
	}
	const more = 1000
	var answers []<-chan error
	for range more {
		answers = append(answers, in.Submit([]Event{laneEvent(t, "x")}))
	}
	mustRun(t, in.Run)
	for _, done := range answers {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	r.assertInOrder(t, callers*each+more)
}

// assertInOrder reads n events from the stream and compares each with its key's last.
func (r *rig) assertInOrder(t testing.TB, n int) {
	t.Helper()
	last := map[string]int64{}
	for _, b := range r.queued(t, n) {
		for _, encoded := range b.Events {
			ce := &pb.CloudEvent{}
			if err := proto.Unmarshal(encoded, ce); err != nil {
				t.Fatal(err)
			}
			seqnum, err := strconv.ParseInt(ce.Attributes[SeqnumAttribute].GetCeString(), 10, 64)
			if err != nil || seqnum != last[ce.Source]+1 {
				t.Fatalf("%s: seqnum %d follows %d", ce.Source, seqnum, last[ce.Source])
			}
			last[ce.Source] = seqnum
		}
	}
}

// queued reads the stream from its beginning until it has brought n events.
func (r *rig) queued(t testing.TB, n int) []*Batch {
	t.Helper()
	c, err := r.queue.js.OrderedConsumer(t.Context(), EventsStream, jetstream.OrderedConsumerConfig{})
	if err != nil {
		t.Fatal(err)
	}
	var out []*Batch
	for got := 0; got < n; {
		msg, err := c.Next(jetstream.FetchMaxWait(patience))
		if err != nil {
			t.Fatalf("after %d of %d events: %v", got, n, err)
		}
		var lane int
		if _, err := fmt.Sscanf(msg.Subject(), "events.%d", &lane); err != nil {
			t.Fatal(err)
		}
		b, err := parseMessage(lane, msg.Headers(), msg.Data())
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b)
		got += len(b.Events)
	}
	return out
}

// Invariant 8: what waits for a transaction is bounded.
func TestOverloadIsATypedError(t *testing.T) {
	r := mustRig(t)
	cfg := DefaultIngesterConfig()
	cfg.QueueEvents = 10
	in, err := NewIngester(cfg, r.store, r.queue, testLog(t), testMeter)
	if err != nil {
		t.Fatal(err)
	}
	var waiting []<-chan error
	for range 10 {
		waiting = append(waiting, in.Submit(mustEvents(t, 1, 1)))
	}
	select {
	case err := <-in.Submit(mustEvents(t, 1, 1)):
		if !errors.Is(err, ErrOverloaded) {
			t.Fatalf("got %v, want ErrOverloaded", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("an event beyond the limit is queued")
	}
	if events, _ := in.queueFill(); events != 10 {
		t.Fatalf("%d events wait", events)
	}
	mustRun(t, in.Run)
	for _, done := range waiting {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

// What was submitted before a stop is committed, and every caller gets an answer.
func TestStopAnswersEverybody(t *testing.T) {
	r := mustRig(t)
	in, err := NewIngester(DefaultIngesterConfig(), r.store, r.queue, testLog(t), testMeter)
	if err != nil {
		t.Fatal(err)
	}
	var waiting []<-chan error
	for range 100 {
		waiting = append(waiting, in.Submit(mustEvents(t, 3, 2)))
	}
	stop := mustRun(t, in.Run)
	stop()
	for _, done := range waiting {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if n := r.pending(t); n != 300 {
		t.Fatalf("%d of 300 events stored", n)
	}
	if err := <-in.Submit(mustEvents(t, 1, 1)); !errors.Is(err, ErrUnavailable) {
		t.Fatalf("after the stop: %v, want ErrUnavailable", err)
	}
	if err := in.Run(t.Context()); err == nil {
		t.Fatal("a second Run is no error")
	}
	if err := in.Health(); err == nil {
		t.Fatal("healthy after the stop")
	}
}

// One unit that Postgres refuses must not take the others of its flush with it.
func TestOneBadUnitFailsAlone(t *testing.T) {
	r := mustRig(t)
	in, err := NewIngester(DefaultIngesterConfig(), r.store, r.queue, testLog(t), testMeter)
	if err != nil {
		t.Fatal(err)
	}
	bad := mustEvent(t, "/s", "t", "x")
	bad.ID = "nul\x00"
	good := []<-chan error{in.Submit(mustEvents(t, 5, 2)), nil, in.Submit(mustEvents(t, 5, 2))}
	good[1] = in.Submit([]Event{bad})
	mustRun(t, in.Run)
	for i, done := range good {
		err := <-done
		if (i == 1) != (err != nil) {
			t.Fatalf("unit %d: %v", i, err)
		}
	}
	if n := r.pending(t); n != 10 {
		t.Fatalf("%d events stored, want 10", n)
	}
}

// Those of a large flush are not committed one by one because of one unit, which would take seconds.
func TestABadUnitIsFoundInAFewTransactions(t *testing.T) {
	r := mustRig(t)
	in := r.mustIngester(t, r.url, leaveOutbox)
	bad := mustEvent(t, "/s", "t", "x")
	bad.ID = "nul\x00"
	var good []<-chan error
	var refused <-chan error
	var want []string
	for i := range 256 {
		if i == 100 {
			refused = in.Submit([]Event{bad})
			continue
		}
		want = append(want, fmt.Sprint(i))
		good = append(good, in.Submit([]Event{mustEvent(t, "/s", "t", fmt.Sprint(i))}))
	}
	mustRun(t, in.Run)
	for i, done := range good {
		if err := <-done; err != nil {
			t.Fatalf("unit %d: %v", i, err)
		}
	}
	if err := <-refused; err == nil {
		t.Error("the bad unit is committed")
	}
	if got := storedIDs(t, r.store)["/s"]; !slices.Equal(got, want) {
		t.Errorf("stored %v, want the others in their order", got)
	}
	if n := mustCount(t, r.store, `SELECT count(*) FROM waybill.batches`); n != 8 {
		t.Errorf("%d transactions have stored something, want 8: half, a quarter, and so on", n)
	}
}

// A stop takes as long as the transaction under way and what Run is given beside, also while a transaction that one unit has
// spoiled is taken apart, and nothing of it can be committed.
func TestStopWhileAFlushIsTakenApart(t *testing.T) {
	r := mustRig(t)
	r.mustAccept(t, mustEvent(t, "/s", "t", "with a head"))
	in := r.mustIngester(t, r.url, func(c *IngesterConfig) {
		leaveOutbox(c)
		c.FlushTimeout, c.StopTimeout = time.Second, time.Second
	})
	mustHoldHeads(t, r.store)
	var answers []<-chan error
	submit := func(taken takenRows) {
		done := make(answerChannel, 1)
		answers = append(answers, done)
		in.submit(&unit{events: []Event{mustEvent(t, "/s", "t", fmt.Sprint(len(answers)))}, taken: taken, asked: done})
	}
	for range 30 {
		submit(takenRows{})
	}
	submit(takenRows{[]outboxKey{{xid: 1, id: 1}}, serverStart(t, r.store)}) // a row that is gone
	stop := mustRun(t, in.Run)
	if err := <-answers[0]; err == nil {
		t.Fatal("committed without a head")
	}
	began := time.Now()
	stop()
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("the stop took %v, want 2 s or so", took)
	}
	for i, done := range answers {
		if i > 0 && <-done == nil {
			t.Errorf("unit %d is answered as committed", i)
		}
	}
}

// Without JetStream events are accepted all the same, and publishing gives up in time.
func TestAcceptWithoutJetStream(t *testing.T) {
	r := mustRig(t)
	r.nats.Stop()
	r.mustAccept(t, laneEvent(t, "a"))
	if err := r.nats.Start(); err != nil {
		t.Fatal(err)
	}
	r.mustJanitor(t, nil)
	r.deliverAll(t, 1)
}

// Invariant 10: somebody who reads the stream moves nothing of the live path, and the
// janitor leaves that consumer alone.
func TestReadingTheStreamTouchesNoLiveState(t *testing.T) {
	r := mustPatientRig(t)
	r.mustJanitor(t, func(c *JanitorConfig) { c.ReplayWindow = time.Hour })
	for i := range 20 {
		r.mustAccept(t, laneEvent(t, fmt.Sprint(i)))
	}
	eventually(t, patience, "consumers exist", func() bool {
		f, err := r.queue.readFloors(t.Context())
		return err == nil && len(f.byName) == len(testSpec.Sinks)*testSpec.Lanes
	})
	r.awaitQueued(t, 20)
	before := r.liveState(t)
	reader, err := r.queue.js.CreateConsumer(t.Context(), EventsStream, jetstream.ConsumerConfig{Durable: "reader", AckPolicy: jetstream.AckExplicitPolicy})
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		msg, err := reader.Next(jetstream.FetchMaxWait(patience))
		if err != nil {
			t.Fatal(err)
		}
		if err := msg.DoubleAck(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(500 * time.Millisecond) // several rounds of upkeep and trimming
	if _, err := reader.Info(t.Context()); err != nil {
		t.Fatalf("the reader's consumer: %v", err)
	}
	if after := r.liveState(t); after != before {
		t.Fatalf("live state was\n%s\nand is\n%s", before, after)
	}
	r.deliverAll(t, 20)
}

// awaitQueued waits until the stream has so many messages, of which nobody has taken any, and each sink's consumers know of
// them: they hear of a message after the stream has it.
func (r *rig) awaitQueued(t testing.TB, messages uint64) {
	t.Helper()
	eventually(t, patience, fmt.Sprintf("%d messages wait for each sink", messages), func() bool {
		f, err := r.queue.readFloors(t.Context())
		if err != nil || f.info.State.Msgs != messages {
			return false
		}
		for _, sink := range testSpec.Sinks {
			waiting := uint64(0)
			for lane := range testSpec.Lanes {
				waiting += f.byName[consumerName(sink, lane)].NumPending
			}
			if waiting != messages {
				return false
			}
		}
		return true
	})
}

// liveState is what the live path knows: rows, positions, and the stream's extent.
func (r *rig) liveState(t testing.TB) string {
	t.Helper()
	f, err := r.queue.readFloors(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := fmt.Sprintf("pending %d, attempts %d, stream %d-%d\n", r.pending(t),
		mustCount(t, r.store, `SELECT coalesce(sum(attempts), 0) FROM waybill.batches`), f.info.State.FirstSeq, f.info.State.LastSeq)
	for _, sink := range testSpec.Sinks {
		for lane := range testSpec.Lanes {
			info := f.byName[consumerName(sink, lane)]
			out += fmt.Sprintf("%s floor %d delivered %d pending %d\n", info.Name, info.AckFloor.Stream, info.Delivered.Stream, info.NumPending)
		}
	}
	return out
}

// Invariant 4, through the front door: two ingests, 64 writers.
func TestTwoIngestsNumberWithoutGaps(t *testing.T) {
	r := mustRig(t)
	other, err := NewIngester(DefaultIngesterConfig(), mustStoreAt(t, r.url), r.queue, testLog(t), testMeter)
	if err != nil {
		t.Fatal(err)
	}
	mustRun(t, other.Run)
	const writers, rounds, keys = 64, 20, 5
	var wg sync.WaitGroup
	for w := range writers {
		in := []*Ingester{r.in, other}[w%2]
		wg.Go(func() {
			for n := range rounds {
				var events []Event
				for k := range 1 + (w*n)%7 {
					events = append(events, mustEvent(t, fmt.Sprintf("/s/%d", (w+k)%keys), "t", fmt.Sprintf("%d-%d-%d", w, n, k)))
				}
				if err := in.Accept(t.Context(), events); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	assertDense(t, r.store)
}
