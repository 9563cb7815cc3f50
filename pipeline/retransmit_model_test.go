package pipeline

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// Whatever happens in whatever order, to ingests that publish late, forwarders that crash between
// any two steps, janitors that stop and go on, and streams that are shed, trimmed, cut short, lost
// and made anew:
//
//   - no janitor claims what is queued for a sink, or delivered and not yet settled;
//   - trimming takes nothing from a sink;
//   - a row goes only when every sink has the batch;
//   - and once the faults are over, every batch reaches every sink in a bounded time.
func TestNothingQueuedIsRetransmittedAndAllArrives(t *testing.T) {
	check(t, 8000, func(t *rapid.T) {
		rapid.SyncTest(t, func(t *rapid.T) {
			w := newWorld(t)
			defer w.end()
			for range rapid.IntRange(10, 120).Draw(t, "steps") {
				rapid.SampledFrom(worldSteps).Draw(t, "step").do(w)
				w.look()
			}
			w.recover()
		})
	})
}

type worldStep struct {
	name string
	do   func(*world)
}

func (s worldStep) String() string { return s.name }

// worldSteps are what may happen next; those that move things on are listed more than once.
var worldSteps = func() []worldStep {
	work := []worldStep{
		{"work", (*world).work},
		{"let a call pass", (*world).letPass},
		{"begin to append", (*world).begin},
		{"commit", (*world).commit},
		{"land", (*world).landOne},
		{"time passes", (*world).sleep},
		{"settle", (*world).settle},
		{"janitor begins a pass", (*world).startPass},
	}
	strides := []worldStep{{"deliver", (*world).deliver}, {"go on with a pass", (*world).goOn}, {"accept", (*world).accept}, {"overtake", (*world).overtake}}
	faults := []worldStep{
		{"janitor dies", (*world).crashJanitor},
		{"worker dies", (*world).crashWorker},
		{"shed", (*world).shed},
		{"trim", (*world).trimStep},
		{"upkeep", (*world).upkeep},
		{"wipe events", (*world).wipeEvents},
		{"lose the newest part", (*world).loseNewest},
		{"wipe receipts", (*world).wipeReceipts},
		{"delete a consumer", (*world).deleteConsumer},
		{"break a message", (*world).breakMessage},
	}
	return slices.Concat(strides, work, strides, work, faults, strides)
}()

// accept is a whole append and its publish.
func (w *world) accept() {
	w.begin()
	w.commit()
	w.look()
	w.landOne()
}

// overtake is two appends to one lane, of which the later one may be stored before the other.
func (w *world) overtake() {
	lane := rapid.IntRange(0, w.lanes-1).Draw(w.t, "lane")
	for range 2 {
		if !w.beginIn(lane) {
			return
		}
		time.Sleep(rapid.SampledFrom([]time.Duration{w.grace / 4, w.grace * 15 / 16, time.Millisecond}).Draw(w.t, "time"))
	}
	w.commit()
	w.commit()
	w.look()
	for range rapid.IntRange(0, 2).Draw(w.t, "stored") {
		w.landOne()
	}
}

// deliver lets a worker carry a message all the way.
func (w *world) deliver() {
	k := w.workers[rapid.IntRange(0, len(w.workers)-1).Draw(w.t, "worker")]
	for k.step(w) && k.hand != nil {
		w.look()
	}
}

// goOn lets some calls of a pass succeed, one after another.
func (w *world) goOn() {
	for range rapid.IntRange(1, 6).Draw(w.t, "calls") {
		calls := w.serve.waiting()
		if len(calls) == 0 {
			return
		}
		w.serve.pass(calls[rapid.IntRange(0, len(calls)-1).Draw(w.t, "call")], works)
		w.look()
	}
}

func (w *world) begin() { w.beginIn(rapid.IntRange(0, w.lanes-1).Draw(w.t, "lane")) }

func (w *world) beginIn(lane int) bool {
	if len(w.rows)+len(w.begun) >= 8 {
		return false
	}
	w.number++
	b := Batch{
		ID: BatchID{w.number, uint64(w.number)}, Lane: lane,
		AcceptedAt: w.pgNow(), QueuedAt: w.pgNow(), count: 1,
	}
	w.begun = append(w.begun, &worldRow{batch: b, waiting: slices.Clone(w.sinks), bytes: rapid.SampledFrom([]int64{100, 200}).Draw(w.t, "bytes")})
	return true
}

func (w *world) commit() {
	if len(w.begun) == 0 {
		return
	}
	i := rapid.IntRange(0, len(w.begun)-1).Draw(w.t, "transaction")
	row := w.begun[i]
	w.begun = slices.Delete(w.begun, i, i+1)
	w.rows[row.batch.ID.Number] = row
	w.flights = append(w.flights, &flight{row.batch, row.batch.QueuedAt.Add(w.grace)})
}

// landOne stores one of the messages on their way, or loses it.
func (w *world) landOne() {
	if len(w.flights) == 0 {
		return
	}
	i := rapid.IntRange(0, len(w.flights)-1).Draw(w.t, "flight")
	f := w.flights[i]
	w.flights = slices.Delete(w.flights, i, i+1)
	if !oneIn(w.t, 8, "is lost") {
		w.land(f.batch, oneIn(w.t, 32, "is broken"))
	}
}

func (w *world) sleep() {
	d := rapid.SampledFrom([]time.Duration{
		time.Millisecond, w.grace / 2, w.grace, 30 * time.Millisecond, w.grace / 8, w.grace + w.grace/8, 10 * w.grace,
	}).Draw(w.t, "time")
	time.Sleep(d)
}

// letPass lets one of the waiting calls of the janitors pass.
func (w *world) letPass() {
	calls := w.serve.waiting()
	if len(calls) == 0 {
		return
	}
	c := calls[rapid.IntRange(0, len(calls)-1).Draw(w.t, "call")]
	how := works
	if oneIn(w.t, 16, "goes wrong") {
		how = rapid.SampledFrom([]outcome{fails, unanswered, late}).Draw(w.t, "how")
	}
	w.serve.pass(c, how)
}

func (w *world) startPass() {
	i := rapid.IntRange(0, len(w.passes)-1).Draw(w.t, "janitor")
	if p := w.passes[i]; p != nil {
		select {
		case <-p.ended:
		default:
			return
		}
	}
	w.runPass(i)
}

func (w *world) runPass(janitor int) {
	ctx, cancel := context.WithCancel(context.Background())
	p := &worldPass{w: w, janitor: janitor, cancel: cancel, ended: make(chan struct{})}
	w.passes[janitor] = p
	cfg := DefaultJanitorConfig()
	cfg.RetransmitBytes = w.most
	r := retransmitter{cfg: cfg, store: p, queue: p, metrics: worldMetrics, log: slog.New(slog.DiscardHandler)}
	survey := w.survey()
	go func() {
		defer close(p.ended)
		_, _ = r.pass(ctx, survey) // a pass that fails is followed by another
	}()
}

var worldMetrics = func() *janitorMetrics {
	m, err := newJanitorMetrics(testMeter, &Janitor{})
	if err != nil {
		panic(err)
	}
	return m
}()

func (w *world) crashJanitor() {
	if p := w.passes[rapid.IntRange(0, len(w.passes)-1).Draw(w.t, "janitor")]; p != nil && oneIn(w.t, 2, "dies") {
		p.cancel()
		<-p.ended
	}
}

func (w *world) crashWorker() {
	i := rapid.IntRange(0, len(w.workers)-1).Draw(w.t, "worker")
	w.workers[i].known, w.workers[i].hand = newDelivered(), nil
}

// work moves a worker on by one step.
func (w *world) work() { w.workers[rapid.IntRange(0, len(w.workers)-1).Draw(w.t, "worker")].step(w) }

// step fetches, sends, receipts or acks: the steps between which a forwarder may be paused or die.
// It reports whether there was anything to do.
func (k *worldWorker) step(w *world) bool {
	if k.hand == nil {
		return k.fetch(w)
	}
	b := &k.hand.batch
	switch k.next {
	case sendIt:
		w.has[fate{b.ID.Number, k.sink}] = true
		k.known.add(b.ID, delivery{attempt: int32(b.Attempt)})
		k.next = receiptIt
	case receiptIt:
		r := &w.receipts
		r.last++
		r.stored = append(r.stored, &worldReceipt{seq: r.last, receipt: Receipt{Sink: k.sink, Lane: k.lane, Batches: []BatchReceipt{{ID: b.ID}}}})
		k.known.receipted(b.ID)
		k.next = ackIt
	default:
		w.ack(k)
		k.hand = nil
	}
	return true
}

// ack reaches the consumer that the message came from, if there still is one, and the message
// that has the sequence now.
func (w *world) ack(k *worldWorker) {
	m := w.first(k.lane, k.hand.seq)
	if w.consumers[consumerName(k.sink, k.lane)] == k.of && m != nil && m.seq == k.hand.seq {
		k.of.acked[m.seq] = true
		w.advance(k.of)
	}
}

func (k *worldWorker) fetch(w *world) bool {
	c := w.consumers[consumerName(k.sink, k.lane)]
	if c == nil {
		return false
	}
	for _, m := range w.events.messages {
		if m.batch.Lane != k.lane || m.seq <= c.floor || c.acked[m.seq] {
			continue
		}
		k.hand, k.of = m, c
		c.delivered = max(c.delivered, m.seq)
		switch {
		case m.broken:
			k.next = terminate
		case !m.batch.For(k.sink):
			k.next = ackIt
		default:
			k.next = k.known.treat(&m.batch)
		}
		return true
	}
	return false
}

// settle applies some receipts in a transaction, and acks some that were applied: the janitor may
// die between the two.
func (w *world) settle() {
	var receipts []Receipt
	var taken []*worldReceipt
	for _, r := range w.receipts.stored {
		if !oneIn(w.t, 4, "left for later") {
			taken, receipts = append(taken, r), append(receipts, r.receipt)
		}
	}
	w.apply(receipts)
	for _, r := range taken {
		r.applied = true
	}
	if !oneIn(w.t, 8, "dies before the acks") {
		w.receipts.stored = slices.DeleteFunc(w.receipts.stored, func(r *worldReceipt) bool { return slices.Contains(taken, r) })
	}
}

// apply does to the rows what Settle does.
func (w *world) apply(receipts []Receipt) {
	s := gather(receipts)
	for _, c := range s.claims {
		if row := w.rows[c.id.Number]; row != nil && row.batch.ID == c.id {
			c.found, c.waiting, c.events = true, row.waiting, 1
		}
	}
	rows := s.sort(&Settled{DeadLetters: map[SinkCode]int{}})
	for i, number := range rows.waitingBatches {
		w.rows[number].waiting = []string{rows.waitingRemaining[i]} // of two, one is left
	}
	for _, number := range rows.settled {
		for _, sink := range w.sinks {
			if !w.has[fate{number, sink}] {
				w.t.Fatalf("the row of batch %d goes and %s does not have it", number, sink)
			}
		}
		delete(w.rows, number)
	}
}

func (w *world) shed() {
	if n := len(w.events.messages); n > 0 && oneIn(w.t, 2, "sheds") {
		w.purge(w.events.first + uint64(rapid.IntRange(1, n).Draw(w.t, "messages")))
	}
}

// trimStep reads the stream's state, or trims by the state that it read some steps before.
func (w *world) trimStep() {
	if w.trim == nil {
		w.trim = &worldTrim{w.events.created, w.state()}
		return
	}
	trim := w.trim
	w.trim = nil
	if !trim.created.Equal(w.events.created) {
		return
	}
	f := w.floors()
	keep, ok := f.acked(w.sinks, w.lanes, trim.state)
	if !ok {
		return
	}
	window, err := firstQueuedAt(trim.state, w.pgNow().Add(-w.grace), w.any)
	if err != nil {
		w.t.Fatal(err)
	}
	w.look()
	before := maps.Clone(w.out)
	w.purge(min(keep, window))
	w.look()
	for f := range w.out {
		if !before[f] {
			w.t.Fatalf("trimming took batch %d from %s", f.number, f.sink)
		}
	}
}

// upkeep looks at the consumers, or creates those that it found missing or ahead some steps before.
func (w *world) upkeep() {
	if w.keeping == nil {
		f := w.floors()
		w.keeping = &worldUpkeep{f, w.survey()}
		return
	}
	w.createConsumers()
}

func (w *world) createConsumers() {
	f, survey := w.keeping.floors, w.keeping.survey
	w.keeping = nil
	for _, sink := range w.sinks {
		for lane := range w.lanes {
			name := consumerName(sink, lane)
			old := f.byName[name]
			if old != nil && !f.ahead(old) {
				continue
			}
			now := w.consumers[name]
			if old == nil && now != nil || old != nil && (now == nil || !now.created.Equal(old.Created)) {
				continue // another janitor was faster
			}
			start, err := consumerStart(sink, lane, &survey, f.info.State, w.grace, w.of(lane))
			if err != nil {
				w.t.Fatal(err)
			}
			w.consumers[name] = &worldConsumer{created: w.birth(), lane: lane, floor: start - 1, acked: map[uint64]bool{}}
		}
	}
}

func (w *world) wipeEvents() {
	if oneIn(w.t, 2, "wiped") {
		w.events = worldStream{created: w.birth(), first: 1}
		w.consumers = map[string]*worldConsumer{}
	}
}

// loseNewest is a crash after which the stream lacks what was not on disk. The consumers have
// state of their own, which is as old, or newer.
func (w *world) loseNewest() {
	n := len(w.events.messages)
	if n == 0 || !oneIn(w.t, 2, "lost") {
		return
	}
	lost := rapid.IntRange(1, n).Draw(w.t, "messages")
	w.events.last = w.events.messages[n-lost].seq - 1
	w.events.messages = slices.Clone(w.events.messages[:n-lost])
	for _, name := range slices.Sorted(maps.Keys(w.consumers)) {
		c := w.consumers[name]
		maps.DeleteFunc(c.acked, func(seq uint64, _ bool) bool { return seq > w.events.last })
		if oneIn(w.t, 2, "consumer too") {
			c.floor, c.delivered = min(c.floor, w.events.last), min(c.delivered, w.events.last)
		}
	}
}

func (w *world) wipeReceipts() {
	if oneIn(w.t, 2, "wiped") {
		w.receipts = worldReceipts{created: w.birth()}
	}
}

func (w *world) deleteConsumer() {
	if oneIn(w.t, 2, "deleted") {
		sink := rapid.SampledFrom(w.sinks).Draw(w.t, "sink")
		delete(w.consumers, consumerName(sink, rapid.IntRange(0, w.lanes-1).Draw(w.t, "lane")))
	}
}

func (w *world) breakMessage() {
	if n := len(w.events.messages); n > 0 && oneIn(w.t, 4, "broken") {
		w.events.messages[rapid.IntRange(0, n-1).Draw(w.t, "message")].broken = true
	}
}

// recover ends the faults and lets everybody work, until every batch has reached every sink.
func (w *world) recover() {
	began := time.Now()
	for len(w.begun) > 0 {
		w.rows[w.begun[0].batch.ID.Number] = w.begun[0]
		w.begun = w.begun[1:]
	}
	for range 40 {
		w.round()
		if len(w.rows) == 0 {
			return
		}
		time.Sleep(w.grace / 2)
		w.look()
	}
	var lacking []string
	for _, number := range slices.Sorted(maps.Keys(w.rows)) {
		for _, sink := range w.rows[number].waiting {
			lacking = append(lacking, fmt.Sprintf("batch %d, %s: %s", number, sink, w.describe(w.rows[number], sink)))
		}
	}
	w.t.Fatalf("%v after the last fault these wait:\n%v", time.Since(began), lacking)
}

// round lets each do what there is to do, once.
func (w *world) round() {
	for _, f := range w.flights {
		w.land(f.batch, false)
	}
	w.flights = nil
	w.keeping = &worldUpkeep{w.floors(), w.survey()}
	w.createConsumers()
	for _, k := range w.workers {
		for k.step(w) {
		}
	}
	w.settleAll()
	w.look()
	for i, p := range w.passes {
		if p == nil {
			w.runPass(i)
		}
		w.finishPass(i)
	}
}

// passUntil lets the calls of a pass succeed that come before one.
func (w *world) passUntil(what string) {
	for c := w.serve.waiting()[0]; !strings.Contains(c.key, what); c = w.serve.waiting()[0] {
		w.serve.pass(c, works)
		w.look()
	}
}

// finishPass lets all calls of a janitor's pass succeed until it ends.
func (w *world) finishPass(janitor int) {
	for {
		w.look()
		if calls := w.serve.waiting(); len(calls) > 0 {
			w.serve.pass(calls[0], works)
			continue
		}
		select {
		case <-w.passes[janitor].ended:
			w.passes[janitor] = nil
			return
		default:
			time.Sleep(20 * time.Millisecond) // the barrier's pause
		}
	}
}

func (w *world) settleAll() {
	var receipts []Receipt
	for _, r := range w.receipts.stored {
		receipts = append(receipts, r.receipt)
	}
	w.apply(receipts)
	w.receipts.stored = nil
}

// end stops the passes.
func (w *world) end() {
	for _, p := range w.passes {
		if p != nil {
			p.cancel()
			<-p.ended
		}
	}
}

// What a sink has acked after a pass read the floors may be trimmed before the pass looks for what
// is above them. Its receipts, which are younger than the floors, are waited for all the same.
func TestTrimDuringAPass(t *testing.T) {
	check(t, 1, func(t *rapid.T) {
		rapid.SyncTest(t, func(t *rapid.T) {
			w := newWorld(t)
			defer w.end()
			w.most = 1 << 20
			for n := range int64(2) { // the second keeps the other lane waiting, so that there is a pass
				b := Batch{ID: BatchID{n + 1, 1}, Lane: int(n), AcceptedAt: w.pgNow(), QueuedAt: w.pgNow(), count: 1}
				w.rows[n+1] = &worldRow{batch: b, waiting: slices.Clone(w.sinks), bytes: 100}
				w.land(b, false)
			}
			time.Sleep(2 * w.grace)
			w.look()
			w.runPass(0)
			w.passUntil(" reads events")
			for _, k := range w.workers {
				for k.step(w) {
					w.look()
				}
			}
			w.trimStep()
			w.trimStep()
			if len(w.events.messages) > 0 {
				t.Fatalf("%d messages were not trimmed", len(w.events.messages))
			}
			w.finishPass(0) // it waits for the receipts, which nobody settles, and gives up
			if w.events.last != 2 {
				t.Fatalf("%d batches were published again", w.events.last-2)
			}
		})
	})
}

// A server that loses its newest writes may give a consumer an earlier place and lose the receipts of what is behind it, in
// the middle of a pass: what was acked when the pass read the floors is queued again.
func TestAConsumerGoesBackDuringAPass(t *testing.T) {
	check(t, 1, func(t *rapid.T) {
		rapid.SyncTest(t, func(t *rapid.T) {
			w := newWorld(t)
			defer w.end()
			w.most = 1 << 20
			b := Batch{ID: BatchID{1, 1}, AcceptedAt: w.pgNow(), QueuedAt: w.pgNow(), count: 1}
			w.rows[1] = &worldRow{batch: b, waiting: slices.Clone(w.sinks), bytes: 100}
			w.land(b, false)
			k := w.workers[0]
			for k.step(w) {
				w.look()
			}
			time.Sleep(2 * w.grace)
			w.look()
			w.runPass(0)
			w.passUntil(" looks at the receipts")
			c := w.consumers[consumerName(k.sink, k.lane)]
			if c.floor != 1 {
				t.Fatalf("%s has acked up to %d, want 1", k.sink, c.floor)
			}
			c.floor, c.delivered, c.acked = 0, 0, map[uint64]bool{}
			w.look()
			w.receipts = worldReceipts{created: w.birth()}
			w.finishPass(0)
			if w.events.last != 1 {
				t.Fatalf("%d batches were published again", w.events.last-1)
			}
		})
	})
}
