package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/waybillhq/waybill/pipeline/failpoint"
)

// publishTimeout bounds one attempt; within the deadline there are several.
const publishTimeout = 2 * time.Second

// publishPause is the pause after a failed attempt.
const publishPause = 100 * time.Millisecond

// Publisher puts batches into EVENTS: one un-acked publish per lane, in the order of
// Enqueue. It attempts none later than half the grace period after the batch's transaction
// began, so that nothing in the queue is out of place by more; what it cannot publish in
// time it leaves to the janitor, which finds it in Postgres.
type Publisher struct {
	queue    *Queue
	log      *slog.Logger
	metrics  *publisherMetrics
	tracing  *Tracing // may be nil
	maxBytes int64
	grace    time.Duration
	lanes    []publishLane
	drained  chan struct{} // closed when Enqueue is no longer called

	mu     sync.Mutex // guards what follows, and every lane's queue
	bytes  int64
	asleep []*publishLane // those that Wake is to wake
}

// publishLane is one lane's queue, guarded by Publisher.mu.
type publishLane struct {
	queue []outgoing
	wake  chan struct{} // capacity 1
	// Batches that were ever put into the queue, and those that were published or left since.
	enqueued, finished int64
}

type outgoing struct {
	msg      *nats.Msg
	id       BatchID
	events   int
	deadline time.Time
	hop      *hop
}

// NewPublisher returns a publisher for the lanes of a pipeline that holds at most
// maxBytes of message bodies in memory. grace is the pipeline's.
func NewPublisher(q *Queue, lanes int, grace time.Duration, maxBytes int64, log *slog.Logger, m *publisherMetrics) *Publisher {
	p := &Publisher{queue: q, log: log, metrics: m, maxBytes: maxBytes, grace: grace, lanes: make([]publishLane, lanes), drained: make(chan struct{})}
	for i := range p.lanes {
		p.lanes[i].wake = make(chan struct{}, 1)
	}
	return p
}

// Enqueue hands over a committed batch, to be published from the next Wake on. It never blocks: beyond
// maxBytes the batch is left to the janitor. began is when the batch's transaction began.
func (p *Publisher) Enqueue(b *Batch, body []byte, began time.Time) {
	o := outgoing{msg: b.message(body), id: b.ID, events: b.count, deadline: began.Add(p.grace / 2)}
	o.hop = p.tracing.publishing(b, o.msg)
	lane := &p.lanes[b.Lane]
	p.mu.Lock()
	full := p.bytes+int64(len(body)) > p.maxBytes
	if !full {
		p.bytes += int64(len(body))
		lane.queue = append(lane.queue, o)
		lane.enqueued++
		p.asleep = append(p.asleep, lane)
	}
	p.mu.Unlock()
	if full {
		p.metrics.left(b.count, "full")
	}
}

// Wake lets the lanes publish what was handed over. It is apart from Enqueue so that those who wait for
// their answers come first: a lane's write to NATS may take a processor from them for as long as it takes
// nats-server to read it.
func (p *Publisher) Wake() {
	p.mu.Lock()
	lanes := p.asleep
	p.asleep = nil
	p.mu.Unlock()
	for _, lane := range lanes {
		signal(lane.wake)
	}
}

// Finish says that Enqueue will not be called again: Run returns once what is queued was
// published or left.
func (p *Publisher) Finish() { close(p.drained) }

// Run publishes until Finish, or until ctx ends: what is then queued is left to the janitor.
func (p *Publisher) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for i := range p.lanes {
		wg.Go(func() { p.runLane(ctx, &p.lanes[i]) })
	}
	wg.Wait()
	return nil
}

func (p *Publisher) runLane(ctx context.Context, lane *publishLane) {
	for {
		o, ok := p.take(lane)
		if ok {
			p.deliver(ctx, o)
			p.finished(lane)
			continue
		}
		select {
		case <-lane.wake:
		case <-ctx.Done():
			return
		case <-p.drained:
			if o, ok := p.take(lane); ok {
				p.deliver(ctx, o)
				p.finished(lane)
				continue
			}
			return
		}
	}
}

func (p *Publisher) take(lane *publishLane) (outgoing, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(lane.queue) == 0 {
		return outgoing{}, false
	}
	o := lane.queue[0]
	lane.queue[0] = outgoing{}
	lane.queue = lane.queue[1:]
	p.bytes -= int64(len(o.msg.Data))
	return o, true
}

// deliver publishes one message or leaves it to the janitor, which needs no word of it.
func (p *Publisher) deliver(ctx context.Context, o outgoing) {
	err := p.publish(ctx, o)
	o.hop.stored(err)
	if err != nil {
		p.metrics.left(o.events, "failed")
		p.log.Debug("batch left to the janitor", "batch", o.id.String(), o.hop.trace(), "error", err)
	}
}

func (p *Publisher) finished(lane *publishLane) {
	p.mu.Lock()
	defer p.mu.Unlock()
	lane.finished++
}

// mark is how much was ever put into the queue of each lane.
func (p *Publisher) mark() []int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	mark := make([]int64, len(p.lanes))
	for i := range p.lanes {
		mark[i] = p.lanes[i].enqueued
	}
	return mark
}

// reached reports whether what was put into the queue up to a mark is published or left.
func (p *Publisher) reached(mark []int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range p.lanes {
		if p.lanes[i].finished < mark[i] {
			return false
		}
	}
	return true
}

// publish tries until the message is stored or its deadline has passed. The same message
// id makes a repeated attempt inside the dedupe window harmless.
func (p *Publisher) publish(ctx context.Context, o outgoing) error {
	last := errors.New("its time was up before the first attempt")
	for time.Now().Before(o.deadline) {
		start := time.Now()
		failpoint.Hit("ingest/before-publish")
		err := failpoint.Err("ingest/after-publish", p.queue.publishOnce(ctx, o))
		p.metrics.published(o.events, time.Since(start), err)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		last = err
		pause(ctx, publishPause)
	}
	return last
}

// publishOnce attempts to store a message and waits for the word that it was, at most until
// its deadline. After an error the outcome is unknown.
func (q *Queue) publishOnce(ctx context.Context, o outgoing) error {
	ctx, cancel := context.WithTimeout(ctx, min(time.Until(o.deadline), publishTimeout))
	defer cancel()
	// The client's own retries would let a later message overtake this one.
	_, err := q.js.PublishMsg(ctx, o.msg, jetstream.WithRetryAttempts(0), jetstream.WithExpectStream(EventsStream))
	if err != nil {
		return fmt.Errorf("publish batch %v: %w", o.id, err)
	}
	return nil
}

// queueFill returns the bytes held and their bound.
func (p *Publisher) queueFill() (bytes, limit int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.bytes, p.maxBytes
}

// pause waits for d or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
