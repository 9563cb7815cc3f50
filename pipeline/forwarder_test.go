package pipeline

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/waybillhq/waybill/internal/devstack"
)

// site is a server with streams and consumers, without Postgres: the test plays ingest
// and the janitor.
type site struct {
	nats  *devstack.NATS
	queue *Queue
	nc    *nats.Conn
	cfg   QueueConfig
	lanes int
	sinks []string
	sent  []*Batch
}

func mustSite(t testing.TB, lanes int, sinks ...string) *site {
	t.Helper()
	s := &site{nats: mustNATS(t), cfg: DefaultQueueConfig(), lanes: lanes, sinks: sinks}
	s.cfg.MaxBytes, s.cfg.MaxReceiptBytes, s.cfg.LeaseTTL = 256<<20, 64<<20, testLeaseTTL
	s.queue, s.nc = mustQueue(t, s.nats)
	s.mustCreate(t)
	return s
}

// mustCreate makes what is missing of the streams and consumers.
func (s *site) mustCreate(t testing.TB) {
	t.Helper()
	if err := s.queue.ensureStreams(t.Context(), s.cfg, s.lanes); err != nil {
		t.Fatal(err)
	}
	for _, sink := range s.sinks {
		for lane := range s.lanes {
			if err := s.queue.ensureConsumer(t.Context(), EventsStream, sinkConsumerConfig(s.cfg, sink, lane, 0)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// batch makes a batch of n events; the numbers count up from 1.
func (s *site) batch(lane, n int) *Batch {
	now := time.Now().UTC()
	b := &Batch{
		ID: BatchID{Number: int64(len(s.sent) + 1), Token: rand.Uint64()}, Lane: lane, count: n,
		AcceptedAt: now, QueuedAt: now, ExpiresAt: now.Add(time.Hour),
	}
	for i := range n {
		b.Events = append(b.Events, fmt.Appendf(nil, "event %d of batch %d", i, b.ID.Number))
	}
	s.sent = append(s.sent, b)
	return b
}

func (s *site) mustPublish(t testing.TB, b *Batch) {
	t.Helper()
	var body []byte
	for i, e := range b.Events {
		body = appendEvent(body, e, int64(i))
	}
	if _, err := s.queue.js.PublishMsg(t.Context(), b.message(body)); err != nil {
		t.Fatal(err)
	}
}

// mustSend publishes n batches to each lane, each of a few events.
func (s *site) mustSend(t testing.TB, n int) {
	t.Helper()
	for range n {
		for lane := range s.lanes {
			s.mustPublish(t, s.batch(lane, 1+len(s.sent)%3))
		}
	}
}

// recorder is a sink that keeps what it got, and answers as the test wants.
type recorder struct {
	name   string
	limits Limits

	mu    sync.Mutex
	sends []sendCall
	// answer decides; nil: everything is delivered.
	answer func(ctx context.Context, lane int, items []Item) ([]Result, error)
}

type sendCall struct {
	lane  int
	items []Item
	at    time.Time
}

func newRecorder(name string) *recorder {
	return &recorder{name: name, limits: Limits{Events: 100, Bytes: 1 << 20}}
}

func (r *recorder) Name() string                { return r.name }
func (r *recorder) Limits() Limits              { return r.limits }
func (r *recorder) Probe(context.Context) error { return nil }

func (r *recorder) Send(ctx context.Context, lane int, items []Item) ([]Result, error) {
	r.mu.Lock()
	r.sends = append(r.sends, sendCall{lane, slices.Clone(items), time.Now()})
	answer := r.answer
	r.mu.Unlock()
	if answer != nil {
		return answer(ctx, lane, items)
	}
	return allDelivered(items), nil
}

func (r *recorder) set(answer func(context.Context, int, []Item) ([]Result, error)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answer = answer
}

func (r *recorder) calls() []sendCall {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.sends)
}

// times returns how often each batch was sent.
func (r *recorder) times() map[BatchID]int {
	n := map[BatchID]int{}
	for _, call := range r.calls() {
		for i, item := range call.items {
			if i == 0 || call.items[i-1].Batch != item.Batch {
				n[item.Batch.ID]++
			}
		}
	}
	return n
}

// order returns, per lane, the numbers of the batches in the order of their first send.
func (r *recorder) order() map[int][]int64 {
	order, seen := map[int][]int64{}, map[BatchID]bool{}
	for _, call := range r.calls() {
		for _, item := range call.items {
			if id := item.Batch.ID; !seen[id] {
				seen[id] = true
				order[call.lane] = append(order[call.lane], id.Number)
			}
		}
	}
	return order
}

func allDelivered(items []Item) []Result {
	results := make([]Result, len(items))
	for i := range results {
		results[i].Verdict = Delivered
	}
	return results
}

// hang answers when its context ends, or release is closed.
func hang(release <-chan struct{}) func(context.Context, int, []Item) ([]Result, error) {
	return func(ctx context.Context, _ int, items []Item) ([]Result, error) {
		select {
		case <-release:
			return allDelivered(items), nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// refuse answers with an error for the whole request.
func refuse(context.Context, int, []Item) ([]Result, error) { return nil, errDown }

func testForwarderConfig(s *site, id string, sinks ...Sink) ForwarderConfig {
	c := DefaultForwarderConfig()
	c.ID, c.Lanes, c.Sinks = id, s.lanes, sinks
	c.RebalanceEvery, c.CheckEvery = 50*time.Millisecond, 200*time.Millisecond
	c.BackoffMin, c.BackoffMax = 5*time.Millisecond, 50*time.Millisecond
	c.BreakerMin, c.BreakerMax = 20*time.Millisecond, 100*time.Millisecond
	c.StopTimeout = 2 * time.Second
	return c
}

func (s *site) mustForwarder(t testing.TB, q *Queue, id string, change func(*ForwarderConfig), sinks ...Sink) (f *Forwarder, stop func()) {
	t.Helper()
	cfg := testForwarderConfig(s, id, sinks...)
	if change != nil {
		change(&cfg)
	}
	f, err := NewForwarder(cfg, q, testLog(t), testMeter)
	if err != nil {
		t.Fatal(err)
	}
	return f, mustRun(t, f.Run)
}

// receipts returns what is in RECEIPTS, by sink.
func (s *site) receipts(t testing.TB) map[string]map[BatchID][]BatchReceipt {
	t.Helper()
	all := map[string]map[BatchID][]BatchReceipt{}
	for _, sink := range s.sinks {
		all[sink] = map[BatchID][]BatchReceipt{}
	}
	stream, err := s.queue.js.Stream(t.Context(), ReceiptsStream)
	if err != nil {
		return all
	}
	state := stream.CachedInfo().State
	for seq := state.FirstSeq; seq <= state.LastSeq && state.Msgs > 0; seq++ {
		m, err := stream.GetMsg(t.Context(), seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			return all
		}
		receipts, err := parseReceipts(m.Data)
		if err != nil {
			continue // filler of a test
		}
		for _, r := range receipts {
			for _, b := range r.Batches {
				all[r.Sink][b.ID] = append(all[r.Sink][b.ID], b)
			}
		}
	}
	return all
}

// settled reports whether every batch sent so far has its receipts and every consumer is
// acked to the end.
func (s *site) settled(t testing.TB) bool {
	t.Helper()
	receipts := s.receipts(t)
	for _, sink := range s.sinks {
		for _, b := range s.sent {
			if b.For(sink) && len(receipts[sink][b.ID]) == 0 {
				return false
			}
		}
	}
	return s.drained(t)
}

func (s *site) drained(t testing.TB) bool {
	t.Helper()
	for _, sink := range s.sinks {
		for lane := range s.lanes {
			c, err := s.queue.js.Consumer(t.Context(), EventsStream, consumerName(sink, lane))
			if err != nil {
				return false
			}
			if info := c.CachedInfo(); info.NumAckPending > 0 || info.NumPending > 0 {
				return false
			}
		}
	}
	return true
}

func (s *site) mustSettle(t testing.TB, within time.Duration) {
	t.Helper()
	eventually(t, within, "everything has its receipts and is acked", func() bool { return s.settled(t) })
}

// mustBeInOrder checks that each lane's batches were first sent in queue order.
func mustBeInOrder(t testing.TB, r *recorder) {
	t.Helper()
	for lane, numbers := range r.order() {
		if !slices.IsSorted(numbers) {
			t.Errorf("%s, lane %d: sent in the order %v", r.name, lane, numbers)
		}
	}
}

// mustBeSentOnce checks that no batch was sent twice, and none was left out.
func mustBeSentOnce(t testing.TB, s *site, r *recorder) {
	t.Helper()
	times := r.times()
	for _, b := range s.sent {
		if n := times[b.ID]; b.For(r.name) && n != 1 {
			t.Errorf("%s: batch %v was sent %d times", r.name, b.ID, n)
		}
	}
}

func TestForwarderDeliversToEverySink(t *testing.T) {
	s := mustSite(t, 4, "ingress", "archive")
	ingress, archive := newRecorder("ingress"), newRecorder("archive")
	archive.limits.Linger = 300 * time.Millisecond
	s.mustSend(t, 25)
	began := time.Now()
	f, stop := s.mustForwarder(t, s.queue, "a", func(c *ForwarderConfig) { c.StopTimeout = patience }, ingress, archive)
	s.mustSettle(t, patience)
	s.mustSend(t, 25)
	s.mustSettle(t, patience)
	for _, r := range []*recorder{ingress, archive} {
		mustBeSentOnce(t, s, r)
		mustBeInOrder(t, r)
		for _, call := range r.calls() {
			if len(call.items) > r.limits.Events {
				t.Errorf("%s: %d events in a request", r.name, len(call.items))
			}
			for _, item := range call.items {
				if want := s.sent[item.Batch.ID.Number-1]; item.Batch.Lane != call.lane || item.Batch.ID != want.ID ||
					string(item.Encoded()[:len(want.Events[item.Index])]) != string(want.Events[item.Index]) {
					t.Fatalf("%s got %+v in lane %d", r.name, item.Batch, call.lane)
				}
			}
		}
	}
	// 50 batches a lane came in two bursts: the linger makes few requests of them.
	if n, took := len(archive.calls()), time.Since(began); n > s.lanes*(2+int(took/archive.limits.Linger)) {
		t.Errorf("the lingering sink got %d requests in %v", n, took)
	}
	if err := f.Problems(); err != nil {
		t.Errorf("ready: %v", err)
	}
	if st := f.Status(); len(st.Workers) != 8 || st.Workers[0].Problem != "" || st.Workers[0].Since.IsZero() {
		t.Errorf("status: %+v", st)
	}
	began = time.Now()
	stop()
	if took := time.Since(began); took > patience/2 {
		t.Errorf("an idle one took %v to stop", took)
	}
	if holders, err := LaneHolders(t.Context(), s.queue); err != nil || len(holders) != 0 {
		t.Errorf("after the stop: %v, %v", holders, err)
	}
	if live, err := LiveProcesses(t.Context(), s.queue, KindForwarder); err != nil || len(live) != 0 {
		t.Errorf("after the stop: %v, %v", live, err)
	}
}

func TestForwarderMergesUpToTheLimits(t *testing.T) {
	s := mustSite(t, 1, "ingress")
	r := newRecorder("ingress")
	r.limits = Limits{Events: 10, Bytes: 600}
	for _, n := range []int{4, 4, 4, 25, 3, 1, 1, 9, 10} {
		s.mustPublish(t, s.batch(0, n))
	}
	large := s.batch(0, 2)
	large.Events[0] = make([]byte, 5000)
	s.mustPublish(t, large)
	s.mustPublish(t, s.batch(0, 1))
	s.mustForwarder(t, s.queue, "a", nil, r)
	s.mustSettle(t, patience)
	mustBeSentOnce(t, s, r)
	mustBeInOrder(t, r)
	for _, call := range r.calls() {
		bytes := 0
		for _, item := range call.items {
			bytes += len(item.Encoded())
		}
		one := call.items[0].Batch == call.items[len(call.items)-1].Batch
		if !one && (len(call.items) > 10 || bytes > 600) {
			t.Errorf("a request of %d events and %d bytes", len(call.items), bytes)
		}
	}
}

// What arrives while a request is in flight makes the next one.
func TestForwarderMergesWhatArrivesDuringASend(t *testing.T) {
	s := mustSite(t, 1, "ingress")
	r := newRecorder("ingress")
	release := make(chan struct{})
	r.set(hang(release))
	s.mustForwarder(t, s.queue, "a", nil, r)
	s.mustSend(t, 1)
	eventually(t, patience, "the first is in flight", func() bool { return len(r.calls()) == 1 })
	s.mustSend(t, 30)
	eventually(t, patience, "all are prefetched", func() bool {
		c, err := s.queue.js.Consumer(t.Context(), EventsStream, consumerName("ingress", 0))
		return err == nil && c.CachedInfo().NumPending == 0
	})
	close(release)
	s.mustSettle(t, patience)
	// Two, but what the server has sent may come to the worker in parts.
	if n := len(r.calls()); n > 10 {
		t.Errorf("31 batches took %d requests", n)
	}
	mustBeSentOnce(t, s, r)
}

func TestForwarderRetriesOnlyWhatFailed(t *testing.T) {
	s := mustSite(t, 1, "ingress")
	r := newRecorder("ingress")
	var mu sync.Mutex
	tries := map[string]int{}
	r.set(func(_ context.Context, _ int, items []Item) ([]Result, error) {
		mu.Lock()
		defer mu.Unlock()
		results := allDelivered(items)
		for i, item := range items {
			key := fmt.Sprintf("%d/%d", item.Batch.ID.Number, item.Index)
			tries[key]++
			// The second event of each batch needs three tries.
			if item.Index == 1 && tries[key] < 3 {
				results[i] = Result{Verdict: Retry, Reason: "busy"}
			}
		}
		return results, nil
	})
	for range 10 {
		s.mustPublish(t, s.batch(0, 3))
	}
	s.mustForwarder(t, s.queue, "a", nil, r)
	s.mustSettle(t, patience)
	for _, b := range s.sent {
		for i := range b.Events {
			want := 1
			if i == 1 {
				want = 3
			}
			if n := tries[fmt.Sprintf("%d/%d", b.ID.Number, i)]; n != want {
				t.Errorf("event %d of batch %v was tried %d times, want %d", i, b.ID, n, want)
			}
		}
	}
	for id, receipts := range s.receipts(t)["ingress"] {
		if len(receipts) != 1 || len(receipts[0].Refused) != 0 {
			t.Errorf("batch %v: %+v", id, receipts)
		}
	}
}

func TestForwarderReceiptsNameTheRefused(t *testing.T) {
	s := mustSite(t, 1, "ingress")
	r := newRecorder("ingress")
	r.set(func(_ context.Context, _ int, items []Item) ([]Result, error) {
		results := allDelivered(items)
		for i, item := range items {
			if item.Index == 2 {
				results[i] = Result{Verdict: Refused, Code: "BAD\x00", Reason: "no \xff schema"}
			}
		}
		return results, nil
	})
	for range 5 {
		s.mustPublish(t, s.batch(0, 4))
	}
	s.mustForwarder(t, s.queue, "a", nil, r)
	s.mustSettle(t, patience)
	want := []Refusal{{Index: 2, Code: "BAD?", Reason: "no ? schema"}}
	for id, receipts := range s.receipts(t)["ingress"] {
		if len(receipts) != 1 || !slices.Equal(receipts[0].Refused, want) {
			t.Errorf("batch %v: %+v", id, receipts)
		}
	}
	mustBeSentOnce(t, s, r)
}

// A sink that breaks its contract is not believed.
func TestForwarderDoesNotBelieveAMismatch(t *testing.T) {
	s := mustSite(t, 1, "ingress")
	r := newRecorder("ingress")
	var once sync.Once
	r.set(func(_ context.Context, _ int, items []Item) ([]Result, error) {
		results := allDelivered(items)
		once.Do(func() { results = results[1:] })
		return results, nil
	})
	s.mustSend(t, 1)
	s.mustForwarder(t, s.queue, "a", nil, r)
	s.mustSettle(t, patience)
	if n := r.times()[s.sent[0].ID]; n != 2 {
		t.Errorf("sent %d times", n)
	}
}

func TestOneSinkDownDelaysOnlyItself(t *testing.T) {
	s := mustSite(t, 4, "ingress", "archive")
	ingress, archive := newRecorder("ingress"), newRecorder("archive")
	ingress.set(refuse)
	f, _ := s.mustForwarder(t, s.queue, "a", nil, ingress, archive)
	s.mustSend(t, 50)
	up := *s
	up.sinks = []string{"archive"}
	up.mustSettle(t, patience)
	mustBeSentOnce(t, s, archive)
	if n := len(s.receipts(t)["ingress"]); n != 0 {
		t.Errorf("%d receipts of the sink that is down", n)
	}
	// It takes some requests to be sure, in lanes that may be taken last.
	eventually(t, patience, "it says that the sink is down", func() bool { return errors.Is(f.Problems(), errDown) })
	if st := f.Status(); st.Sinks[0].Down == "" || st.Sinks[0].DownSince.IsZero() || st.Sinks[1].Down != "" {
		t.Errorf("status: %+v", st.Sinks)
	}
	ingress.set(nil)
	s.mustSettle(t, patience)
	eventually(t, patience, "it is ready", func() bool { return f.Problems() == nil })
	mustBeInOrder(t, ingress)
}

// stuck is a sink that answers, and takes nothing of one lane.
func stuck(at int) func(context.Context, int, []Item) ([]Result, error) {
	return func(_ context.Context, lane int, items []Item) ([]Result, error) {
		if lane != at {
			return allDelivered(items), nil
		}
		results := make([]Result, len(items))
		for i := range results {
			results[i].Reason = "not now"
		}
		return results, nil
	}
}

// A lane that is stuck on an event waits by itself: the destination answers.
func TestForwarderStuckLaneDelaysOnlyItself(t *testing.T) {
	s := mustSite(t, 2, "ingress")
	r := newRecorder("ingress")
	r.set(stuck(0))
	f, _ := s.mustForwarder(t, s.queue, "a", nil, r)
	down := func() string { return f.Status().Sinks[0].Down }
	s.mustPublish(t, s.batch(0, 2))
	eventually(t, patience, "it is tried often", func() bool { return len(r.calls()) > 2*f.cfg.BreakerFailures })
	if down() != "" {
		t.Errorf("the sink counts as down: %s", down())
	}
	if err := f.Problems(); err == nil || !strings.Contains(err.Error(), "lane 0 of ingress: ") || !strings.Contains(err.Error(), "not now") {
		t.Errorf("problems: %v", err)
	}
	calls := r.calls()
	if gap := calls[len(calls)-1].at.Sub(calls[len(calls)-2].at); gap < 10*time.Millisecond {
		t.Errorf("the lane does not back off: %v between tries", gap)
	}
	// An outage ends with an answer, whatever it says.
	r.set(refuse)
	eventually(t, patience, "it is down", func() bool { return down() != "" })
	r.set(stuck(0))
	eventually(t, patience, "it is up", func() bool { return down() == "" })
	s.mustPublish(t, s.batch(1, 2))
	eventually(t, patience, "the other lane is delivered", func() bool { return len(s.receipts(t)["ingress"]) == 1 })
	if down() != "" {
		t.Errorf("the sink counts as down: %s", down())
	}
	r.set(nil)
	s.mustSettle(t, patience)
}

// While the sink is down it is hardly bothered; when it is back, the backlog does not
// trickle.
func TestForwarderDrainsABacklogAtFullSpeed(t *testing.T) {
	s := mustSite(t, 8, "ingress")
	r := newRecorder("ingress")
	r.limits.Events = 10
	r.set(refuse)
	const pause = 300 * time.Millisecond
	began := time.Now()
	f, _ := s.mustForwarder(t, s.queue, "a", func(c *ForwarderConfig) {
		// Whoever sleeps between tries when the sink comes back must be woken.
		c.BackoffMin, c.BackoffMax = time.Hour, time.Hour
		c.BreakerMin, c.BreakerMax = pause, pause
	}, r)
	s.mustSend(t, 100)
	// More than there may be at once.
	eventually(t, patience, "an outage of some probes", func() bool { return f.Status().Sinks[0].Down != "" && len(r.calls()) > 2*s.lanes+4 })
	probes, outage := len(r.calls()), time.Since(began)
	// Each lane may fail once before it waits for the breaker, and a pause is half as long at least.
	if probes > 2*s.lanes+int(outage/(pause/2)) {
		t.Errorf("%d requests in an outage of %v", probes, outage)
	}
	r.set(nil)
	began = time.Now()
	s.mustSettle(t, patience)
	t.Logf("%d requests in the outage; 800 batches drained in %v", probes, time.Since(began))
	if took := time.Since(began); took > 30*time.Second { // a pause for each request would take longer
		t.Errorf("the backlog took %v", took)
	}
	mustBeInOrder(t, r)
}

// An outage that ends while a request fails ends the pause after it: nobody else would wake its lane.
func TestForwarderHearsOfAnOutageThatEndsDuringASend(t *testing.T) {
	s := mustSite(t, 1, "ingress")
	r := newRecorder("ingress")
	var f *Forwarder
	r.set(func(context.Context, int, []Item) ([]Result, error) {
		r.set(nil)
		breaker := f.outlets[0].breaker
		for range f.cfg.BreakerFailures {
			breaker.failed(false, errDown)
		}
		breaker.succeeded() // of another lane
		return nil, errDown
	})
	s.mustSend(t, 1)
	f, err := NewForwarder(testForwarderConfig(s, "a", r), s.queue, testLog(t), testMeter)
	if err != nil {
		t.Fatal(err)
	}
	f.cfg.BackoffMin, f.cfg.BackoffMax = time.Hour, time.Hour
	mustRun(t, f.Run)
	s.mustSettle(t, patience)
	if n := len(r.calls()); n != 2 {
		t.Errorf("%d requests, want 2", n)
	}
}

func TestForwarderSkipsWhatIsNotToBeSent(t *testing.T) {
	s := mustSite(t, 1, "ingress", "archive")
	ingress, archive := newRecorder("ingress"), newRecorder("archive")
	s.mustSend(t, 1)
	for _, raw := range []*nats.Msg{
		{Data: []byte("no header")},
		{Header: nats.Header{"Status": {"409"}, "Description": {"Consumer Deleted"}}},
		{Header: s.sent[0].message(nil).Header, Data: []byte{0xff, 0xff}},
	} {
		raw.Subject = eventSubject(0)
		raw.Header = nats.Header(raw.Header)
		delete(raw.Header, nats.MsgIdHdr)
		if _, err := s.queue.js.PublishMsg(t.Context(), raw); err != nil {
			t.Fatal(err)
		}
	}
	targeted := s.batch(0, 2)
	targeted.Sinks = []string{"archive"}
	s.mustPublish(t, targeted)
	expired := s.batch(0, 2)
	expired.ExpiresAt = time.Now().Add(-time.Hour)
	s.sent = s.sent[:len(s.sent)-1]
	s.mustPublish(t, expired)
	margin := s.batch(0, 2)
	margin.ID.Number += 10
	margin.ExpiresAt = time.Now().Add(-time.Minute)
	s.mustPublish(t, margin)
	forever := s.batch(0, 2)
	forever.ID.Number += 10
	forever.ExpiresAt = time.Time{}
	s.mustPublish(t, forever)

	s.mustForwarder(t, s.queue, "a", nil, ingress, archive)
	s.mustSettle(t, patience)
	mustBeSentOnce(t, s, ingress)
	mustBeSentOnce(t, s, archive)
	for _, r := range []*recorder{ingress, archive} {
		if r.times()[expired.ID] != 0 {
			t.Errorf("%s got an expired batch", r.name)
		}
		if len(s.receipts(t)[r.name][expired.ID]) != 0 {
			t.Errorf("%s: an expired batch has a receipt", r.name)
		}
	}
	if ingress.times()[targeted.ID] != 0 || len(s.receipts(t)["ingress"][targeted.ID]) != 0 {
		t.Error("a batch for the archive went to ingress")
	}
}

// A message larger than the buffer passes, alone.
func TestForwarderPassesLargeMessages(t *testing.T) {
	s := mustSite(t, 1, "ingress")
	r := newRecorder("ingress")
	for i := range 12 {
		b := s.batch(0, 1)
		b.Events[0] = make([]byte, []int{100, 40_000, 700_000, 50_000}[i%4])
		s.mustPublish(t, b)
	}
	s.mustForwarder(t, s.queue, "a", func(c *ForwarderConfig) { c.PrefetchBytes, c.PrefetchMessages = 64<<10, 3 }, r)
	s.mustSettle(t, patience)
	mustBeSentOnce(t, s, r)
	mustBeInOrder(t, r)
}

func TestForwarderBoundsWhatIsInFlight(t *testing.T) {
	s := mustSite(t, 6, "ingress")
	r := newRecorder("ingress")
	r.limits.Events = 3
	var mu sync.Mutex
	now, most := 0, 0
	lanes := map[int]int{}
	r.set(func(_ context.Context, lane int, items []Item) ([]Result, error) {
		mu.Lock()
		now++
		lanes[lane]++
		most = max(most, now)
		if lanes[lane] > 1 {
			t.Errorf("two requests of lane %d at once", lane)
		}
		mu.Unlock()
		time.Sleep(5 * time.Millisecond)
		mu.Lock()
		now--
		lanes[lane]--
		mu.Unlock()
		return allDelivered(items), nil
	})
	s.mustSend(t, 30)
	s.mustForwarder(t, s.queue, "a", func(c *ForwarderConfig) { c.InFlight = 2 }, r)
	s.mustSettle(t, patience)
	if most != 2 {
		t.Errorf("%d requests at once, want 2", most)
	}
}

func TestForwarderWaitsForTheQueue(t *testing.T) {
	n := mustNATS(t)
	q, _ := mustQueue(t, n)
	s := &site{nats: n, queue: q, cfg: DefaultQueueConfig(), lanes: 2, sinks: []string{"ingress"}}
	s.cfg.MaxBytes, s.cfg.MaxReceiptBytes, s.cfg.LeaseTTL = 256<<20, 64<<20, testLeaseTTL
	r := newRecorder("ingress")
	f, _ := s.mustForwarder(t, q, "a", nil, r)
	eventually(t, patience, "it says what is missing", func() bool { return errors.Is(f.Problems(), ErrNotReady) })
	// Streams without consumers: it waits for those too.
	if err := q.ensureStreams(t.Context(), s.cfg, s.lanes); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "it misses the consumers", func() bool { return errors.Is(f.Problems(), jetstream.ErrConsumerNotFound) })
	s.mustSend(t, 3)
	s.mustCreate(t)
	s.mustSettle(t, patience)
	eventually(t, patience, "it is ready", func() bool { return f.Problems() == nil })
	mustBeSentOnce(t, s, r)
}

func TestForwarderRefusesAQueueThatDoesNotFit(t *testing.T) {
	s := mustSite(t, 4, "ingress")
	cfg := testForwarderConfig(s, "a", newRecorder("ingress"))
	cfg.Lanes = 8
	f, err := NewForwarder(cfg, s.queue, testLog(t), testMeter)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Run(t.Context()); err == nil || errors.Is(err, ErrNotReady) {
		t.Errorf("run with another number of lanes: %v", err)
	}
	if err := f.Run(t.Context()); err == nil {
		t.Error("a second run is not refused")
	}
}

func TestForwarderConfigIsChecked(t *testing.T) {
	s := &site{lanes: 4}
	good := testForwarderConfig(s, "a", newRecorder("ingress"))
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	bad := newRecorder("bad")
	bad.limits.Events = 0
	for name, spoil := range map[string]func(*ForwarderConfig){
		"id":              func(c *ForwarderConfig) { c.ID = "" },
		"lanes":           func(c *ForwarderConfig) { c.Lanes = 0 },
		"in":              func(c *ForwarderConfig) { c.InFlight = 0 },
		"margin":          func(c *ForwarderConfig) { c.ExpiryMargin = -1 },
		"bytes of a sink": func(c *ForwarderConfig) { c.SinkBytes = 1 },
		"prefetch":        func(c *ForwarderConfig) { c.PrefetchBytes = 1 },
		"backoff":         func(c *ForwarderConfig) { c.BackoffMax = 0 },
		"failures":        func(c *ForwarderConfig) { c.BreakerFailures = 0 },
		"breaker":         func(c *ForwarderConfig) { c.BreakerMin = 0 },
		"check":           func(c *ForwarderConfig) { c.CheckEvery = 0 },
		"none":            func(c *ForwarderConfig) { c.Sinks = nil },
		"name":            func(c *ForwarderConfig) { c.Sinks = []Sink{newRecorder("a.b")} },
		"twice":           func(c *ForwarderConfig) { c.Sinks = append(c.Sinks, newRecorder("ingress")) },
		"limits":          func(c *ForwarderConfig) { c.Sinks = []Sink{bad} },
	} {
		c := good
		spoil(&c)
		if err := c.Validate(); err == nil {
			t.Errorf("%s: no error", name)
		}
		if _, err := NewForwarder(c, nil, testLog(t), testMeter); err == nil {
			t.Errorf("%s: a forwarder is made", name)
		}
	}
}

// A sink that hangs does not keep the process, and what it had in flight comes again.
func TestForwarderStopsInTime(t *testing.T) {
	s := mustSite(t, 2, "ingress", "archive")
	ingress, archive := newRecorder("ingress"), newRecorder("archive")
	ingress.set(hang(nil))
	archive.set(refuse)
	_, stop := s.mustForwarder(t, s.queue, "a", func(c *ForwarderConfig) { c.StopTimeout = 500 * time.Millisecond }, ingress, archive)
	s.mustSend(t, 5)
	eventually(t, patience, "both sinks are at it", func() bool { return len(ingress.calls()) >= 2 && len(archive.calls()) > 3 })
	began := time.Now()
	stop()
	if took := time.Since(began); took > patience/2 {
		t.Errorf("the stop took %v", took)
	}
	if n := len(s.receipts(t)["ingress"]); n != 0 {
		t.Errorf("%d receipts for what hung", n)
	}
	ingress.set(nil)
	archive.set(nil)
	s.mustForwarder(t, s.queue, "b", nil, ingress, archive)
	s.mustSettle(t, patience)
	mustBeInOrder(t, ingress)
}

// tenures are the lanes that a forwarder has.
func (f *Forwarder) tenures() []*tenure {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Values(f.held))
}

// A request in flight at the stop gets its receipt and acks.
func TestForwarderFinishesWhatIsInFlight(t *testing.T) {
	s := mustSite(t, 2, "ingress")
	r := newRecorder("ingress")
	release := make(chan struct{})
	r.set(hang(release))
	f, stop := s.mustForwarder(t, s.queue, "a", func(c *ForwarderConfig) { c.StopTimeout = 20 * time.Second }, r)
	s.mustSend(t, 1)
	eventually(t, patience, "both lanes are in flight", func() bool { return len(r.calls()) == 2 })
	held := f.tenures()
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	for _, tenure := range held {
		<-tenure.drain // its worker is to begin nothing more
	}
	s2 := *s
	s2.sent = nil
	s2.mustSend(t, 3)
	close(release)
	<-stopped
	if n := len(r.calls()); n != 2 {
		t.Errorf("%d requests", n)
	}
	receipts := s.receipts(t)["ingress"]
	for lane, b := range s.sent {
		if len(receipts[b.ID]) != 1 {
			t.Errorf("batch %v has %d receipts", b.ID, len(receipts[b.ID]))
		}
		// An ack has no answer: the server may take a question that came after it first.
		eventually(t, patience, fmt.Sprintf("lane %d is acked", lane), func() bool {
			return s.mustConsumer(t, "ingress", lane).AckFloor.Consumer == 1
		})
	}
}

func fillReceipts(t testing.TB, s *site) (empty func()) {
	t.Helper()
	stream, err := s.queue.js.Stream(t.Context(), ReceiptsStream)
	if err != nil {
		t.Fatal(err)
	}
	for size := 1 << 20; size > 64; {
		_, err := s.queue.js.Publish(t.Context(), receiptsSubject, make([]byte, size))
		var api *jetstream.APIError
		if errors.As(err, &api) && api.ErrorCode == 10077 {
			size /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		if err := stream.Purge(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// waitsForReceipts reports whether a forwarder says that it cannot store a receipt.
func waitsForReceipts(f *Forwarder) bool {
	err := f.Problems()
	return err != nil && strings.Contains(err.Error(), "store receipt")
}

// With RECEIPTS full the lanes wait; nothing is sent again, and nothing acked.
func TestForwarderWaitsForRoomForReceipts(t *testing.T) {
	s := mustSite(t, 2, "ingress")
	r := newRecorder("ingress")
	empty := fillReceipts(t, s)
	f, _ := s.mustForwarder(t, s.queue, "a", nil, r)
	s.mustSend(t, 1)
	eventually(t, patience, "both lanes are sent", func() bool { return len(r.calls()) == 2 })
	s.mustSend(t, 4)
	eventually(t, patience, "it says why it waits", func() bool { return waitsForReceipts(f) })
	time.Sleep(time.Second)
	if n := len(r.calls()); n != 2 {
		t.Errorf("%d requests while no receipt can be stored", n)
	}
	for lane := range 2 {
		c, err := s.queue.js.Consumer(t.Context(), EventsStream, consumerName("ingress", lane))
		if err != nil {
			t.Fatal(err)
		}
		if info := c.CachedInfo(); info.AckFloor.Consumer != 0 {
			t.Errorf("lane %d is acked before its receipt: %+v", lane, info.AckFloor)
		}
	}
	empty()
	s.mustSettle(t, patience)
	mustBeSentOnce(t, s, r)
	eventually(t, patience, "it is ready", func() bool { return f.Problems() == nil })
}

// sortedHolders returns the lanes of a sink by who holds them.
func sortedHolders(t testing.TB, s *site, sink string) map[string][]int {
	t.Helper()
	holders, err := LaneHolders(t.Context(), s.queue)
	if err != nil {
		return nil
	}
	by := map[string][]int{}
	for place, h := range holders {
		if place.Sink != sink {
			continue
		}
		by[h.Forwarder] = append(by[h.Forwarder], place.Lane)
		slices.SortFunc(by[h.Forwarder], cmp.Compare[int])
	}
	return by
}

func mustJSON(t testing.TB, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// A backlog of every lane must cost a forwarder the bytes that its sink may have, not those
// times the lanes, and no lane may be left without.
func TestWorkersShareTheBytesOfTheirSink(t *testing.T) {
	const lanes, each, size, limit = 8, 60, 32 << 10, 4 << 20
	s := mustSite(t, lanes, "ingress")
	for range each {
		for lane := range lanes {
			b := s.batch(lane, 1)
			b.Events[0] = make([]byte, size)
			s.mustPublish(t, b)
		}
	}
	// All lanes but one come free later: the first worker must leave them their share.
	kv, _, err := s.queue.bucket(t.Context(), leasesBucket)
	if err != nil {
		t.Fatal(err)
	}
	for lane := 1; lane < lanes; lane++ {
		if _, err := kv.Put(t.Context(), SinkLane{"ingress", lane}.leaseKey(), []byte(mustJSON(t, holder("dead")))); err != nil {
			t.Fatal(err)
		}
	}
	r := newRecorder("ingress")
	r.limits = Limits{Events: 10_000, Bytes: 8 << 20}
	release := make(chan struct{})
	r.set(hang(release))
	f, _ := s.mustForwarder(t, s.queue, "a", func(c *ForwarderConfig) { c.SinkBytes = limit }, r)
	eventually(t, patience, "every lane has a worker that holds something", func() bool {
		held := 0
		for lane := range lanes {
			if s.mustUnacked(t, lane) > 0 {
				held++
			}
		}
		return held == lanes && len(f.workers()) == lanes
	})
	held := func() (messages int) {
		for lane := range lanes {
			messages += s.mustUnacked(t, lane)
		}
		return messages
	}
	eventually(t, patience, "a quarter of what they may hold is held", func() bool { return held() >= limit/4/size })
	most := 0
	for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); {
		most = max(most, held())
	}
	if most*size > limit {
		t.Errorf("%d messages of %d bytes are held, %d in all; the limit is %d", most, size, most*size, limit)
	}
	close(release)
	s.mustSettle(t, patience)
	mustBeSentOnce(t, s, r)
	mustBeInOrder(t, r)
}

// mustUnacked is how many messages of a lane were delivered and not acked.
func (s *site) mustUnacked(t testing.TB, lane int) int {
	t.Helper()
	c, err := s.queue.js.Consumer(t.Context(), EventsStream, consumerName("ingress", lane))
	if err != nil {
		t.Fatal(err)
	}
	return c.CachedInfo().NumAckPending
}
