package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"pgregory.net/rapid"
)

// world is the smallest model of all that a retransmit pass is concerned with: Postgres's rows,
// the stream with its consumers, the receipts, and the forwarders between them. The passes are
// the real ones, each in goroutines of its own; every call they make waits at a gate until the
// test lets it pass, with an outcome that the test draws. So at any time one thing happens, rapid
// draws which, and the time is virtual.
//
// It assumes what production may assume: a message is stored less than a grace period after
// queued_at, or never (no attempt begins in the second half of it), and Postgres's clock, which is
// hours off from everybody else's, does not jump.
type world struct {
	t     *rapid.T
	grace time.Duration
	lanes int
	sinks []string
	pgOff time.Duration
	most  int64 // bytes that are un-acked in a (sink, lane) for more to be retransmitted
	steps int
	serve gate

	// Postgres.
	rows   map[int64]*worldRow
	begun  []*worldRow // transactions that are not committed
	number int64
	// JetStream.
	events    worldStream
	consumers map[string]*worldConsumer
	receipts  worldReceipts
	flights   []*flight // publishes whose message may yet be stored
	births    int       // of streams and consumers
	// Forwarders and janitors.
	workers []*worldWorker
	passes  []*worldPass // by janitor; nil: at rest
	trim    *worldTrim
	keeping *worldUpkeep

	has     map[fate]bool // the sink took the batch
	out     map[fate]bool // it waits, and is neither queued nor in flight nor receipted
	lastOut map[fate]int  // newest step at which it was out
}

// fate is a batch as a sink sees it.
type fate struct {
	number int64
	sink   string
}

type worldRow struct {
	batch   Batch // AcceptedAt, QueuedAt and Attempt as the row has them
	waiting []string
	bytes   int64
}

type worldMessage struct {
	seq    uint64
	batch  Batch
	landed time.Time
	broken bool // its headers cannot be read
}

type worldStream struct {
	created  time.Time
	messages []*worldMessage
	first    uint64
	last     uint64
}

type worldConsumer struct {
	created          time.Time
	lane             int
	floor, delivered uint64
	acked            map[uint64]bool
}

type worldReceipt struct {
	seq     uint64
	receipt Receipt
	applied bool // committed; not yet acked
}

type worldReceipts struct {
	created time.Time
	stored  []*worldReceipt
	last    uint64
}

// flight is a message on its way: stored before its deadline or never.
type flight struct {
	batch    Batch
	deadline time.Time
}

// worldWorker is a forwarder's worker of a (sink, lane). There are two of each: they may take a
// lane from each other at any moment.
type worldWorker struct {
	sink  string
	lane  int
	known *delivered
	of    *worldConsumer
	hand  *worldMessage
	next  treatment
}

// worldPass is a running pass of a janitor.
type worldPass struct {
	w       *world
	janitor int
	cancel  context.CancelFunc
	ended   chan struct{}
	floors  int // step at which it read the floors of the consumers
}

type worldTrim struct {
	created time.Time
	state   jetstream.StreamState
}

type worldUpkeep struct {
	floors *floors
	survey Survey
}

func newWorld(t *rapid.T) *world {
	w := &world{
		t: t, grace: 4 * time.Second, lanes: 2, sinks: []string{"archive", "ingress"}, pgOff: -7 * time.Hour,
		rows: map[int64]*worldRow{}, consumers: map[string]*worldConsumer{}, passes: make([]*worldPass, 2),
		has: map[fate]bool{}, out: map[fate]bool{}, lastOut: map[fate]int{},
	}
	w.most = rapid.SampledFrom([]int64{1 << 20, 150}).Draw(t, "retransmit bytes")
	w.events = worldStream{created: w.birth(), first: 1}
	w.receipts = worldReceipts{created: w.birth()}
	for _, sink := range w.sinks {
		for lane := range w.lanes {
			w.consumers[consumerName(sink, lane)] = &worldConsumer{created: w.birth(), lane: lane, acked: map[uint64]bool{}}
			for range 2 {
				w.workers = append(w.workers, &worldWorker{sink: sink, lane: lane, known: newDelivered()})
			}
		}
	}
	return w
}

func (w *world) birth() time.Time {
	w.births++
	return time.Unix(int64(w.births), 0)
}

// pgNow is Postgres's now().
func (w *world) pgNow() time.Time { return time.Now().Add(w.pgOff).Truncate(time.Microsecond).UTC() }

// gate holds calls back until the test lets them pass.
type gate struct {
	mu    sync.Mutex
	calls []*call
}

type call struct {
	key  string
	run  func(outcome) // in the test's goroutine
	done chan struct{}
}

// outcome is how a call ends: as it should, without an effect, or with one that the caller is
// not told of.
type outcome int

const (
	works outcome = iota
	fails
	unanswered
	late // of a publish: unanswered, and the message may be stored later
)

var errWorld = errors.New("the model says no")

func (g *gate) do(ctx context.Context, key string, run func(outcome)) error {
	c := &call{key: key, run: run, done: make(chan struct{})}
	g.mu.Lock()
	g.calls = append(g.calls, c)
	g.mu.Unlock()
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
		g.take(c)
		return ctx.Err()
	}
}

func (g *gate) take(c *call) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.calls = slices.DeleteFunc(g.calls, func(o *call) bool { return o == c })
}

// waiting returns the calls at the gate in an order that does not depend on the scheduler.
func (g *gate) waiting() []*call {
	synctest.Wait()
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.SortedFunc(slices.Values(g.calls), func(a, b *call) int { return cmp.Compare(a.key, b.key) })
}

func (g *gate) pass(c *call, how outcome) {
	g.take(c)
	c.run(how)
	close(c.done)
	synctest.Wait()
}

// look brings up to date which batches are out, for which sinks.
func (w *world) look() {
	w.steps++
	now := w.pgNow()
	w.flights = slices.DeleteFunc(w.flights, func(f *flight) bool { return !now.Before(f.deadline) })
	clear(w.out)
	for number, row := range w.rows {
		for _, sink := range row.waiting {
			f := fate{number, sink}
			if !w.queued(row, sink) && !w.inFlight(row, sink) && !w.receipted(row.batch.ID, sink) {
				w.out[f], w.lastOut[f] = true, w.steps
			}
		}
	}
}

func (w *world) queued(row *worldRow, sink string) bool {
	c := w.consumers[consumerName(sink, row.batch.Lane)]
	return c != nil && slices.ContainsFunc(w.events.messages, func(m *worldMessage) bool {
		return m.batch.ID == row.batch.ID && m.seq > c.floor && m.batch.For(sink) && !m.broken
	})
}

func (w *world) inFlight(row *worldRow, sink string) bool {
	return slices.ContainsFunc(w.flights, func(f *flight) bool { return f.batch.ID == row.batch.ID && f.batch.For(sink) })
}

func (w *world) receipted(id BatchID, sink string) bool {
	return slices.ContainsFunc(w.receipts.stored, func(r *worldReceipt) bool {
		return !r.applied && r.receipt.Sink == sink && r.receipt.Batches[0].ID == id
	})
}

// land stores a message at the end of the stream.
func (w *world) land(b Batch, broken bool) {
	w.events.last++
	w.events.messages = append(w.events.messages, &worldMessage{seq: w.events.last, batch: b, landed: w.pgNow(), broken: broken})
}

// purge deletes what is before a sequence, as JetStream does: floors move up.
func (w *world) purge(first uint64) {
	first = min(max(first, w.events.first), w.events.last+1)
	w.events.first = first
	w.events.messages = slices.DeleteFunc(w.events.messages, func(m *worldMessage) bool { return m.seq < first })
	for _, name := range slices.Sorted(maps.Keys(w.consumers)) {
		c := w.consumers[name]
		c.floor = max(c.floor, first-1)
		w.advance(c)
	}
}

// advance moves a floor over what is acked.
func (w *world) advance(c *worldConsumer) {
	for {
		m := w.first(c.lane, c.floor+1)
		if m == nil || !c.acked[m.seq] {
			return
		}
		c.floor = m.seq
	}
}

// first returns the first message of a lane, -1: of any, at or after a sequence.
func (w *world) first(lane int, seq uint64) *worldMessage {
	for _, m := range w.events.messages {
		if m.seq >= seq && (lane < 0 || m.batch.Lane == lane) {
			return m
		}
	}
	return nil
}

func (w *world) raw(lane int, seq uint64) (*jetstream.RawStreamMsg, error) {
	m := w.first(lane, seq)
	if m == nil {
		return nil, fmt.Errorf("read: %w", jetstream.ErrMsgNotFound)
	}
	out := &jetstream.RawStreamMsg{Sequence: m.seq, Header: nats.Header{}}
	if !m.broken {
		out.Header = m.batch.message(nil).Header
	}
	return out, nil
}

func (w *world) state() jetstream.StreamState {
	return jetstream.StreamState{FirstSeq: w.events.first, LastSeq: w.events.last, Msgs: uint64(len(w.events.messages))}
}

func (w *world) consumerInfos() map[string]*jetstream.ConsumerInfo {
	infos := map[string]*jetstream.ConsumerInfo{}
	for name, c := range w.consumers {
		info := &jetstream.ConsumerInfo{Name: name, Created: c.created}
		info.AckFloor.Stream, info.Delivered.Stream = c.floor, max(c.delivered, c.floor)
		for _, m := range w.events.messages {
			// A consumer hears of a new message a moment after the stream has it.
			fresh := w.pgNow().Sub(m.landed) < w.grace/4 && m.landed.Sub(m.batch.QueuedAt) <= w.grace*3/4
			if m.batch.Lane == c.lane && m.seq > c.floor && !c.acked[m.seq] && !fresh {
				info.NumPending++
			}
		}
		infos[name] = info
	}
	return infos
}

// floors is what readFloors returns when nothing happens meanwhile.
func (w *world) floors() *floors {
	info := &jetstream.StreamInfo{Created: w.events.created, State: w.state()}
	return &floors{created: w.events.created, byName: w.consumerInfos(), info: info}
}

func (w *world) any(seq uint64) (*jetstream.RawStreamMsg, error) { return w.raw(-1, seq) }

func (w *world) of(lane int) func(uint64) (*jetstream.RawStreamMsg, error) {
	return func(seq uint64) (*jetstream.RawStreamMsg, error) { return w.raw(lane, seq) }
}

// survey is what Store.Survey returns.
func (w *world) survey() Survey {
	s := Survey{Now: w.pgNow()}
	for _, sink := range w.sinks {
		for lane := range w.lanes {
			b := Backlog{Sink: sink, Lane: lane}
			for _, row := range w.rows {
				if row.batch.Lane != lane || !slices.Contains(row.waiting, sink) {
					continue
				}
				b.Batches++
				b.Bytes += row.bytes
				b.OldestQueued = earlier(b.OldestQueued, row.batch.QueuedAt)
				if row.batch.QueuedAt.Before(s.Now.Add(-w.grace)) {
					b.Overdue++
				}
			}
			if b.Batches > 0 {
				s.Backlogs = append(s.Backlogs, b)
			}
		}
	}
	return s
}

var (
	_ staleStore = (*worldPass)(nil)
	_ staleQueue = (*worldPass)(nil)
)

func (p *worldPass) do(ctx context.Context, what string, run func(outcome)) error {
	return p.w.serve.do(ctx, fmt.Sprintf("janitor %d %s", p.janitor, what), run)
}

func (p *worldPass) Grace() time.Duration { return p.w.grace }

func (p *worldPass) FindStale(ctx context.Context, lane int, stale []staleFor, limit int) (found []staleBatch, err error) {
	waited := p.do(ctx, fmt.Sprintf("finds in lane %d", lane), func(how outcome) {
		if how != works {
			err = errWorld
			return
		}
		for _, number := range slices.Sorted(maps.Keys(p.w.rows)) {
			row := p.w.rows[number]
			if row.batch.Lane == lane && len(row.staleFor(stale)) > 0 && len(found) < limit {
				found = append(found, staleBatch{number, row.bytes})
			}
		}
	})
	return found, errors.Join(waited, err)
}

// staleFor is the condition of find_stale.sql and claim_stale.sql.
func (r *worldRow) staleFor(stale []staleFor) (sinks []string) {
	for _, s := range stale {
		if slices.Contains(r.waiting, s.sink) && r.batch.QueuedAt.Before(s.before) {
			sinks = append(sinks, s.sink)
		}
	}
	slices.Sort(sinks)
	return sinks
}

func (p *worldPass) ClaimStale(ctx context.Context, numbers []int64, stale []staleFor) (out []claimed, damaged []damagedBatch, err error) {
	waited := p.do(ctx, fmt.Sprintf("claims %v", numbers), func(how outcome) {
		if how == fails {
			err = errWorld
			return
		}
		for _, number := range numbers {
			row := p.w.rows[number]
			if row == nil {
				continue
			}
			sinks := row.staleFor(stale)
			if len(sinks) == 0 {
				continue
			}
			p.mayClaim(row, sinks)
			row.batch.QueuedAt = p.w.pgNow()
			row.batch.Attempt++
			c := claimed{batch: row.batch, body: make([]byte, row.bytes)}
			c.batch.Sinks = sinks
			out = append(out, c)
		}
		if how == unanswered {
			out, err = nil, errWorld
		}
	})
	return out, nil, errors.Join(waited, err)
}

// mayClaim is the property: what is claimed was out at some moment since the floors were read.
func (p *worldPass) mayClaim(row *worldRow, sinks []string) {
	for _, sink := range sinks {
		if at := p.w.lastOut[fate{row.batch.ID.Number, sink}]; at < p.floors {
			p.w.t.Fatalf("janitor %d claims batch %v for %s, which was queued for it or delivered all the time:\n%s",
				p.janitor, row.batch.ID, sink, p.w.describe(row, sink))
		}
	}
}

func (w *world) describe(row *worldRow, sink string) string {
	return fmt.Sprintf("queued %v, in flight %v, receipt to be settled %v, queued_at %v ago",
		w.queued(row, sink), w.inFlight(row, sink), w.receipted(row.batch.ID, sink), w.pgNow().Sub(row.batch.QueuedAt))
}

func (p *worldPass) readFloors(ctx context.Context) (f *floors, err error) {
	first := p.floors == 0
	waited := p.do(ctx, "lists the consumers", func(how outcome) {
		if how != works {
			err = errWorld
			return
		}
		f = &floors{created: p.w.events.created, byName: p.w.consumerInfos()}
		if first {
			p.floors = p.w.steps
		}
	})
	if err := errors.Join(waited, err); err != nil {
		return nil, err
	}
	waited = p.do(ctx, "looks at the stream", func(how outcome) {
		if how != works || !p.w.events.created.Equal(f.created) {
			err = errWorld
			return
		}
		f.info = &jetstream.StreamInfo{Created: p.w.events.created, State: p.w.state()}
	})
	return f, errors.Join(waited, err)
}

func (p *worldPass) receipts(ctx context.Context) (info *jetstream.StreamInfo, err error) {
	waited := p.do(ctx, "looks at the receipts", func(how outcome) {
		if how != works {
			err = errWorld
			return
		}
		r := &p.w.receipts
		info = &jetstream.StreamInfo{Created: r.created}
		info.State = jetstream.StreamState{FirstSeq: r.last + 1, LastSeq: r.last, Msgs: uint64(len(r.stored))}
		if len(r.stored) > 0 {
			info.State.FirstSeq = r.stored[0].seq
		}
	})
	return info, errors.Join(waited, err)
}

func (p *worldPass) firstFrom(ctx context.Context, subject string, seq uint64) (msg *jetstream.RawStreamMsg, err error) {
	waited := p.do(ctx, fmt.Sprintf("reads %s from %d", subject, seq), func(how outcome) {
		if how != works {
			err = errWorld
			return
		}
		for lane := range p.w.lanes {
			if eventSubject(lane) == subject {
				msg, err = p.w.raw(lane, seq)
			}
		}
	})
	return msg, errors.Join(waited, err)
}

func (p *worldPass) publishOnce(ctx context.Context, o outgoing) (err error) {
	ctx, cancel := context.WithTimeout(ctx, min(time.Until(o.deadline), publishTimeout))
	defer cancel()
	waited := p.do(ctx, fmt.Sprintf("publishes %v", o.id), func(how outcome) {
		b, parseErr := parseHeaders(o.msg.Header)
		if parseErr != nil {
			p.w.t.Fatalf("published headers cannot be read: %v", parseErr)
		}
		for lane := range p.w.lanes {
			if eventSubject(lane) == o.msg.Subject {
				b.Lane = lane
			}
		}
		if how != works {
			err = errWorld
		}
		switch how {
		case works, unanswered:
			p.w.land(*b, false)
		case late:
			p.w.flights = append(p.w.flights, &flight{*b, b.QueuedAt.Add(p.w.grace)})
		}
	})
	return errors.Join(waited, err)
}
