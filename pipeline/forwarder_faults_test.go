package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func (s *site) mustConsumer(t testing.TB, sink string, lane int) *jetstream.ConsumerInfo {
	t.Helper()
	c, err := s.queue.js.Consumer(t.Context(), EventsStream, consumerName(sink, lane))
	if err != nil {
		t.Fatal(err)
	}
	return c.CachedInfo()
}

// feed publishes to every lane in turn until the returned stop is called.
func (s *site) feed(t testing.TB, every time.Duration) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			case <-time.After(every):
				b := s.batch(i%s.lanes, 1)
				var body []byte
				for n, e := range b.Events {
					body = appendEvent(body, e, int64(n))
				}
				for {
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					_, err := s.queue.js.PublishMsg(ctx, b.message(body))
					cancel()
					if err == nil {
						break
					}
					time.Sleep(20 * time.Millisecond)
				}
			}
		}
	}()
	return sync.OnceFunc(func() { close(done); <-ended })
}

func TestForwardersShareTheLanes(t *testing.T) {
	s := mustSite(t, 8, "ingress")
	r := newRecorder("ingress")
	unhurried := func(c *ForwarderConfig) { c.StopTimeout = patience } // to end what is in flight
	_, stopA := s.mustForwarder(t, s.queue, "a", unhurried, r)
	held := func(want map[string]int) func() bool {
		return func() bool {
			by := sortedHolders(t, s, "ingress")
			if len(by) != len(want) {
				return false
			}
			for id, n := range want {
				if len(by[id]) != n {
					return false
				}
			}
			return true
		}
	}
	eventually(t, patience, "one has all", held(map[string]int{"a": 8}))
	stop := s.feed(t, time.Millisecond)
	qb, _ := mustQueue(t, s.nats)
	_, stopB := s.mustForwarder(t, qb, "b", unhurried, r)
	eventually(t, patience, "two share", held(map[string]int{"a": 4, "b": 4}))
	qc, _ := mustQueue(t, s.nats)
	fc, _ := s.mustForwarder(t, qc, "c", unhurried, r)
	eventually(t, patience, "three share", func() bool {
		by := sortedHolders(t, s, "ingress")
		return len(by) == 3 && len(by["a"]) <= 3 && len(by["b"]) <= 3 && len(by["c"]) <= 3 && len(by["a"])+len(by["b"])+len(by["c"]) == 8
	})
	eventually(t, patience, "its heartbeat names its lanes", func() bool {
		want, got := sortedHolders(t, s, "ingress")["c"], []int{}
		live, err := LiveProcesses(t.Context(), s.queue, KindForwarder)
		for _, h := range live {
			if h.ID == "c" {
				got = h.Lanes
			}
		}
		return err == nil && slices.Equal(got, want)
	})
	stopA()
	stopB()
	eventually(t, patience, "one has all again", held(map[string]int{"c": 8}))
	stop()
	s.mustSettle(t, patience)
	eventually(t, patience, "it is ready", func() bool { return fc.Problems() == nil })
	// Lanes that move in good order move without a single repetition.
	mustBeSentOnce(t, s, r)
	mustBeInOrder(t, r)
}

// Forwarders with different sinks, beside one that says nothing of its own, as one of an
// older version: each sink's lanes are spread over those that serve the sink.
func TestForwardersShareTheLanesOfEachSink(t *testing.T) {
	s := mustSite(t, 8, "ingress", "archive")
	ingress, archive := newRecorder("ingress"), newRecorder("archive")
	mustBeat(t, s, "old")
	var all []*Forwarder
	for id, sinks := range map[string][]Sink{"i": {ingress}, "a": {archive}, "both": {ingress, archive}} {
		q, _ := mustQueue(t, s.nats)
		f, _ := s.mustForwarder(t, q, id, nil, sinks...)
		all = append(all, f)
	}
	eventually(t, patience, "each sink's lanes are shared by two", func() bool {
		for sink, id := range map[string]string{"ingress": "i", "archive": "a"} {
			by := sortedHolders(t, s, sink)
			if len(by) != 2 || len(by[id]) != 4 || len(by["both"]) != 4 {
				return false
			}
		}
		return true
	})
	live, err := LiveProcesses(t.Context(), s.queue, KindForwarder)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range live {
		want := map[string][]string{"i": {"ingress"}, "a": {"archive"}, "both": {"ingress", "archive"}}[h.ID]
		if !slices.Equal(h.Sinks, want) {
			t.Errorf("%s says that it serves %v, want %v", h.ID, h.Sinks, want)
		}
	}
	s.mustSend(t, 10)
	s.mustSettle(t, patience)
	for _, r := range []*recorder{ingress, archive} {
		mustBeInOrder(t, r)
		mustBeSentOnce(t, s, r)
	}
	for _, f := range all {
		eventually(t, patience, f.cfg.ID+" is ready", func() bool { return f.Problems() == nil })
	}
}

// One forwarder per sink serves all lanes of its sink.
func TestForwarderPerSink(t *testing.T) {
	s := mustSite(t, 8, "ingress", "archive")
	for _, sink := range s.sinks {
		q, _ := mustQueue(t, s.nats)
		s.mustForwarder(t, q, "of-"+sink, nil, newRecorder(sink))
	}
	eventually(t, patience, "both are alive", func() bool {
		live, err := LiveProcesses(t.Context(), s.queue, KindForwarder)
		return err == nil && len(live) == 2
	})
	s.mustSend(t, 10)
	s.mustSettle(t, patience)
	for _, sink := range s.sinks {
		if by := sortedHolders(t, s, sink); len(by["of-"+sink]) != 8 {
			t.Errorf("the lanes of %s: %v", sink, by)
		}
	}
}

// mustBeat is a forwarder of which no more is to be seen than its heartbeat.
func mustBeat(t testing.TB, s *site, id string, sinks ...string) (stop func()) {
	t.Helper()
	q, _ := mustQueue(t, s.nats)
	h := NewHeartbeat(KindForwarder, id, "v1")
	h.Sinks = sinks
	stop = mustRun(t, func(ctx context.Context) error {
		return RunHeartbeat(ctx, q, testLog(t), func() Heartbeat { return h })
	})
	eventually(t, patience, id+" is alive", func() bool {
		live, err := LiveProcesses(t.Context(), s.queue, KindForwarder)
		return err == nil && slices.ContainsFunc(live, func(h Heartbeat) bool { return h.ID == id })
	})
	return stop
}

// One that is alive but takes nothing leaves lanes to nobody: the others say so.
func TestForwarderReportsLanesThatNobodyHolds(t *testing.T) {
	t.Parallel()
	s := mustSite(t, 4, "ingress", "archive")
	stop := mustBeat(t, s, "idle", "ingress")
	f, _ := s.mustForwarder(t, s.queue, "a", nil, newRecorder("ingress"), newRecorder("archive"))
	mine := func(sink string) []int { return sortedHolders(t, s, sink)["a"] }
	eventually(t, patience, "its lanes are taken", func() bool { return len(mine("ingress")) == 2 && len(mine("archive")) == 4 })
	if vacant := f.Status().Vacant; len(vacant) != 0 {
		t.Errorf("already vacant: %v", vacant)
	}
	taken := time.Now()
	eventually(t, patience, "it says what nobody holds", func() bool { return len(f.Status().Vacant) == 2 })
	if after := time.Since(taken); after < s.cfg.LeaseTTL {
		t.Errorf("it says so after %v", after)
	}
	for _, v := range f.Status().Vacant {
		if v.Sink != "ingress" || slices.Contains(mine("ingress"), v.Lane) || v.Since.IsZero() {
			t.Errorf("vacant: %+v", v)
		}
		if err := f.Problems(); err == nil || !strings.Contains(err.Error(), v.String()+": since ") {
			t.Errorf("problems: %v", err)
		}
	}
	if err := f.Ready(); err != nil {
		t.Errorf("ready: %v", err)
	}
	stop()
	eventually(t, patience, "it has them", func() bool { return f.Problems() == nil })
	if len(mine("ingress")) != 4 {
		t.Errorf("it holds %v", mine("ingress"))
	}
}

func TestForwarderTakesOverFromTheDead(t *testing.T) {
	t.Parallel()
	s := mustSite(t, 4, "ingress", "archive")
	ingress, archive := newRecorder("ingress"), newRecorder("archive")
	qa, connA := mustQueue(t, s.nats)
	qb, _ := mustQueue(t, s.nats)
	s.mustForwarder(t, qa, "a", nil, ingress, archive)
	s.mustForwarder(t, qb, "b", nil, ingress, archive)
	eventually(t, patience, "they share", func() bool {
		by, archived := sortedHolders(t, s, "ingress"), sortedHolders(t, s, "archive")
		return len(by["a"]) == 2 && len(by["b"]) == 2 && len(archived["a"]) == 2 && len(archived["b"]) == 2
	})
	stop := s.feed(t, time.Millisecond)
	eventually(t, patience, "it flows", func() bool { return len(ingress.calls()) > 100 })
	// Its connection ends in mid-flight, and nothing else is heard of it: for the others
	// that is a death. In its own process the workers go on as zombies for a while.
	connA.Close()
	died := time.Now()
	eventually(t, patience, "the other one has all", func() bool {
		return len(sortedHolders(t, s, "ingress")["b"]) == 4 && len(sortedHolders(t, s, "archive")["b"]) == 4
	})
	took := time.Since(died)
	t.Logf("taken over after %v", took)
	if took > 2*s.cfg.LeaseTTL+time.Second {
		t.Errorf("the takeover took %v", took)
	}
	stop()
	s.mustSettle(t, patience)
	mustBeInOrder(t, ingress)
	mustBeInOrder(t, archive)
}

// Between the receipt and the ack: what follows delivers again at most, and never loses.
func TestForwarderCrashBetweenReceiptAndAck(t *testing.T) {
	t.Parallel()
	s := mustSite(t, 1, "ingress")
	r := newRecorder("ingress")
	release := make(chan struct{})
	r.set(hang(release))
	qa, connA := mustQueue(t, s.nats)
	s.mustForwarder(t, qa, "a", nil, r)
	s.mustSend(t, 1)
	eventually(t, patience, "it is sent", func() bool { return len(r.calls()) == 1 })
	if info := s.mustConsumer(t, "ingress", 0); info.NumAckPending != 1 {
		t.Fatalf("%d un-acked", info.NumAckPending)
	}
	connA.Close() // after the send, before the receipt
	close(release)
	// Played by hand: the receipt of a forwarder that died before its ack.
	receipt := Receipt{Sink: "ingress", Batches: []BatchReceipt{{ID: s.sent[0].ID}}}
	if _, err := s.queue.js.Publish(t.Context(), receiptsSubject, []byte(mustJSON(t, receipt))); err != nil {
		t.Fatal(err)
	}
	qb, _ := mustQueue(t, s.nats)
	s.mustForwarder(t, qb, "b", nil, r)
	s.mustSettle(t, patience)
	eventually(t, patience, "the receipt is repeated", func() bool { return len(s.receipts(t)["ingress"][s.sent[0].ID]) == 2 })
	if n := r.times()[s.sent[0].ID]; n != 2 {
		t.Errorf("sent %d times, want twice: the new process cannot know of the first", n)
	}
}

// mustLose has a forwarder lose every lane of ingress to somebody else, who says so again until it has: a lease that nobody renews
// ends, and the lane could be taken again before anybody has looked.
func (s *site) mustLose(t testing.TB, f *Forwarder) {
	t.Helper()
	kv, _, err := s.queue.bucket(t.Context(), leasesBucket)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "the lanes are lost", func() bool {
		for lane := range s.lanes {
			if _, err := kv.Put(t.Context(), SinkLane{"ingress", lane}.leaseKey(), []byte(mustJSON(t, holder("thief")))); err != nil {
				t.Fatal(err)
			}
		}
		return len(f.Status().Workers) == 0
	})
}

// Acks that are lost with the connection do not lead to a second send.
func TestForwarderDoesNotSendAgainAfterLostAcks(t *testing.T) {
	s := mustSite(t, 2, "ingress")
	r := newRecorder("ingress")
	empty := fillReceipts(t, s)
	release := make(chan struct{})
	r.set(hang(release))
	f, _ := s.mustForwarder(t, s.queue, "a", nil, r)
	s.mustSend(t, 10)
	eventually(t, patience, "both lanes are in flight", func() bool { return len(r.calls()) == 2 })
	close(release)
	eventually(t, patience, "the receipts wait", func() bool { return waitsForReceipts(f) })
	// The lanes are lost while the receipts wait: the requests are given up, un-acked.
	s.mustLose(t, f)
	empty()
	s.mustSettle(t, patience)
	for _, b := range s.sent {
		if n := r.times()[b.ID]; n != 1 {
			t.Errorf("batch %v was sent %d times", b.ID, n)
		}
	}
}

// What a sink has gets its receipt, also if its time was up before one could be stored: or it would be a dead letter of that
// sink for good.
func TestForwarderReceiptsWhatHasExpiredSince(t *testing.T) {
	s := mustSite(t, 1, "ingress")
	r := newRecorder("ingress")
	empty := fillReceipts(t, s)
	f, _ := s.mustForwarder(t, s.queue, "a", func(c *ForwarderConfig) { c.ExpiryMargin = 0 }, r)
	eventually(t, patience, "it has the lane", func() bool { return len(f.Status().Workers) == 1 }) // which may take longer
	b := s.batch(0, 2)
	b.ExpiresAt = time.Now().Add(5 * time.Second)
	s.mustPublish(t, b)
	eventually(t, patience, "the receipt waits", func() bool { return waitsForReceipts(f) })
	time.Sleep(time.Until(b.ExpiresAt))
	s.mustLose(t, f)
	empty()
	s.mustSettle(t, patience)
	mustBeSentOnce(t, s, r)
}

func TestForwarderSurvivesARestartOfNATS(t *testing.T) {
	s := mustSite(t, 4, "ingress", "archive")
	ingress, archive := newRecorder("ingress"), newRecorder("archive")
	s.mustForwarder(t, s.queue, "a", nil, ingress, archive)
	stop := s.feed(t, time.Millisecond)
	for range 2 {
		n := len(ingress.calls())
		eventually(t, patience, "it flows", func() bool { return len(ingress.calls()) > n+50 })
		if err := s.nats.Restart(); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	s.mustSettle(t, patience)
	mustBeInOrder(t, ingress)
	mustBeInOrder(t, archive)
	// A send that was given up because its lease ended may be repeated; nothing else.
	again := 0
	for _, n := range ingress.times() {
		again += n - 1
	}
	t.Logf("%d of %d batches were sent twice", again, len(s.sent))
	if again > 0 {
		t.Errorf("%d batches were sent twice, by a process that knew of them", again)
	}
}

// The consumer goes and comes back at the beginning, as a janitor makes it: everything comes
// again, and what was delivered is not sent again.
func TestForwarderSurvivesTheLossOfItsConsumer(t *testing.T) {
	s := mustSite(t, 1, "ingress")
	r := newRecorder("ingress")
	f, _ := s.mustForwarder(t, s.queue, "a", nil, r)
	s.mustSend(t, 20)
	s.mustSettle(t, patience)
	if err := s.queue.js.DeleteConsumer(t.Context(), EventsStream, consumerName("ingress", 0)); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "it says what is missing", func() bool { return errors.Is(f.Problems(), jetstream.ErrConsumerNotFound) })
	s.mustSend(t, 20)
	s.mustCreate(t)
	s.mustSettle(t, patience)
	mustBeSentOnce(t, s, r)
	mustBeInOrder(t, r)
	eventually(t, patience, "it is ready", func() bool { return f.Problems() == nil })
}

// The stream starts over with lower sequences.
func TestForwarderSurvivesTheLossOfTheStream(t *testing.T) {
	for name, wipe := range map[string]func(t *testing.T, s *site){
		"deleted": func(t *testing.T, s *site) {
			if err := s.queue.js.DeleteStream(t.Context(), EventsStream); err != nil {
				t.Fatal(err)
			}
		},
		"store wiped": func(t *testing.T, s *site) {
			s.nats.Stop()
			if err := s.nats.WipeStore(); err != nil {
				t.Fatal(err)
			}
			if err := s.nats.Start(); err != nil {
				t.Fatal(err)
			}
			// The client may not have noticed yet that its server has gone: what it asks then is answered by nobody.
			eventually(t, patience, "the new server answers", func() bool {
				_, err := s.queue.js.AccountInfo(t.Context())
				return err == nil
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := mustSite(t, 2, "ingress")
			r := newRecorder("ingress")
			f, _ := s.mustForwarder(t, s.queue, "a", nil, r)
			s.mustSend(t, 30)
			s.mustSettle(t, patience)
			wipe(t, s)
			s.mustCreate(t)
			// What was lost comes as retransmits, with a higher attempt; and new ones.
			lost := s.sent
			s.sent = nil
			for _, b := range lost[:10] {
				b.Attempt = 1
				s.mustPublish(t, b)
			}
			s.sent = lost
			s.mustSend(t, 5)
			s.mustForgetReceipts(t, lost[10:])
			s.mustSettle(t, patience)
			mustBeSentOnce(t, s, r)
			mustBeInOrder(t, r)
			if name == "store wiped" {
				// The receipts were lost too: the retransmits get them again without a send.
				for _, b := range lost[:10] {
					if n := len(s.receipts(t)["ingress"][b.ID]); n == 0 {
						t.Errorf("batch %v has no receipt", b.ID)
					}
				}
			}
			eventually(t, patience, "it is ready", func() bool { return f.Problems() == nil })
		})
	}
}

// mustForgetReceipts stands in for a janitor that settled some batches before the loss.
func (s *site) mustForgetReceipts(t testing.TB, batches []*Batch) {
	t.Helper()
	r := Receipt{Sink: "ingress"}
	for _, b := range batches {
		r.Batches = append(r.Batches, BatchReceipt{ID: b.ID})
	}
	if _, err := s.queue.js.Publish(t.Context(), receiptsSubject, []byte(mustJSON(t, r))); err != nil {
		t.Fatal(err)
	}
}

// standingPull asks for n messages of a consumer, as a forwarder that has lost its lane
// and does not know it: they come to the returned subscription.
func (s *site) standingPull(t testing.TB, sink string, lane, n int) *nats.Subscription {
	t.Helper()
	sub, err := s.nc.SubscribeSync(s.nc.NewInbox())
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(pullRequest{Batch: n, Expires: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	subject := jetstream.DefaultAPIPrefix + "CONSUMER.MSG.NEXT." + EventsStream + "." + consumerName(sink, lane)
	if err := s.nc.PublishRequest(subject, sub.Subject, body); err != nil {
		t.Fatal(err)
	}
	return sub
}

// A zombie's standing pull takes messages away, every other one or the last ones.
func TestForwarderGetsBackWhatAZombieTook(t *testing.T) {
	s := mustSite(t, 1, "ingress")
	r := newRecorder("ingress")
	// It stands before the forwarder's own, and survives the reset of the takeover.
	sub := s.standingPull(t, "ingress", 0, 5)
	if err := s.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	s.mustForwarder(t, s.queue, "a", nil, r)
	eventually(t, patience, "both pull", func() bool { return s.mustConsumer(t, "ingress", 0).NumWaiting == 2 })
	s.mustSend(t, 40)
	s.mustSettle(t, patience)
	for i := range 5 {
		m, err := sub.NextMsg(patience)
		if err != nil {
			t.Fatalf("the zombie got %d messages: %v", i, err)
		}
		// Its late acks do no harm.
		if err := m.Respond([]byte("+ACK")); err != nil {
			t.Fatal(err)
		}
	}
	mustBeSentOnce(t, s, r)
	mustBeInOrder(t, r)
}

// The last message of a lane goes to a zombie: no gap shows, only the consumer knows.
func TestForwarderMissesTheLastMessage(t *testing.T) {
	s := mustSite(t, 1, "ingress")
	r := newRecorder("ingress")
	s.mustForwarder(t, s.queue, "a", nil, r)
	s.mustSend(t, 3)
	s.mustSettle(t, patience)
	sub := s.standingPull(t, "ingress", 0, 1)
	eventually(t, patience, "both pull", func() bool { return s.mustConsumer(t, "ingress", 0).NumWaiting == 2 })
	// The requests take turns: one message each.
	s.mustSend(t, 2)
	if _, err := sub.NextMsg(patience); err != nil {
		t.Fatalf("the zombie got nothing: %v", err)
	}
	s.mustSettle(t, patience)
	mustBeSentOnce(t, s, r)
}

// A redelivery that no reset of ours caused: somebody gave a message back.
func TestForwarderStartsOverAfterARedelivery(t *testing.T) {
	s := mustSite(t, 1, "ingress")
	r := newRecorder("ingress")
	release := make(chan struct{})
	r.set(hang(release))
	s.mustForwarder(t, s.queue, "a", nil, r)
	s.mustSend(t, 6)
	eventually(t, patience, "all are delivered", func() bool {
		return len(r.calls()) == 1 && s.mustConsumer(t, "ingress", 0).NumAckPending == 6
	})
	// A NAK in the name of the worker, for its third message.
	m := s.mustConsumer(t, "ingress", 0)
	nak := "$JS.ACK." + EventsStream + "." + m.Name + ".1.3.3.1.0"
	if err := s.nc.Publish(nak, []byte("-NAK")); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "the message is redelivered", func() bool { return s.mustConsumer(t, "ingress", 0).Delivered.Consumer == 7 })
	close(release)
	s.mustSettle(t, patience)
	mustBeSentOnce(t, s, r)
	mustBeInOrder(t, r)
	eventually(t, patience, "the consumer is reset", func() bool { return s.mustConsumer(t, "ingress", 0).Delivered.Consumer < 7 })
}

// Somebody else resets the consumer under the worker's hands.
func TestForwarderSurvivesAForeignReset(t *testing.T) {
	s := mustSite(t, 2, "ingress")
	r := newRecorder("ingress")
	s.mustForwarder(t, s.queue, "a", nil, r)
	stop := s.feed(t, time.Millisecond)
	for i := range 6 {
		n := len(r.calls())
		eventually(t, patience, "it flows", func() bool { return len(r.calls()) > n+5 })
		if _, err := s.queue.js.ResetConsumer(t.Context(), EventsStream, consumerName("ingress", i%2)); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	s.mustSettle(t, patience)
	mustBeSentOnce(t, s, r)
	mustBeInOrder(t, r)
}

// A worker that was paused in the middle of a send, and goes on after another forwarder has
// taken its lane: it must not begin anything, and its late receipt and acks do no harm.
func TestForwarderPausedInASend(t *testing.T) {
	s := mustSite(t, 1, "ingress")
	zombie, live := newRecorder("ingress"), newRecorder("ingress")
	zombie.limits.Events, live.limits.Events = 4, 4
	paused := make(chan struct{})
	goOn := sync.OnceFunc(func() { close(paused) })
	zombie.set(func(_ context.Context, _ int, items []Item) ([]Result, error) {
		<-paused // a paused process does not see its context end
		return allDelivered(items), nil
	})
	qz, _ := mustQueue(t, s.nats)
	z, err := NewForwarder(testForwarderConfig(s, "z", zombie), qz, testLog(t), testMeter)
	if err != nil {
		t.Fatal(err)
	}
	kv, ttl, err := qz.bucket(t.Context(), leasesBucket)
	if err != nil {
		t.Fatal(err)
	}
	s.mustSend(t, 20) // before its lease begins to run out
	place := SinkLane{"ingress", 0}
	l, err := takeLease(t.Context(), leases{kv}, ttl, place, holder("z"))
	if err != nil {
		t.Fatal(err)
	}
	// The tenure's worker without its keeper: nobody renews.
	w := z.newWorker(&tenure{place: place, lease: l, drain: make(chan struct{})}, z.outlets[0], testLog(t))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { w.run(ctx); close(ended) }()
	stored := make(chan struct{})
	go func() { z.receipts.run(ctx); close(stored) }()
	defer func() { goOn(); cancel(); <-ended; <-stored }()
	eventually(t, patience, "the zombie is in its send", func() bool { return len(zombie.calls()) == 1 })
	s.mustForwarder(t, s.queue, "a", nil, live)
	s.mustSettle(t, patience)
	goOn()
	s.mustSend(t, 20)
	s.mustSettle(t, patience)
	eventually(t, patience, "the zombie notices", func() bool { return errors.Is(w.status.problem().err, errLeaseLost) })
	if n := len(zombie.calls()); n != 1 {
		t.Errorf("the zombie sent %d requests", n)
	}
	mustBeSentOnce(t, s, live)
	mustBeInOrder(t, live)
}
