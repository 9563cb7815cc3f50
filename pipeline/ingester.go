package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"go.opentelemetry.io/otel/metric"

	"github.com/waybillhq/waybill/pipeline/failpoint"
)

// IngesterConfig says how events are gathered into transactions.
type IngesterConfig struct {
	// FlushEvents and FlushBytes bound one transaction; a unit of Submit is never split,
	// so one larger unit goes alone.
	FlushEvents int
	FlushBytes  int
	// BatchBytes bounds the body of one message, unless it holds one event.
	BatchBytes int
	// QueueEvents and QueueBytes bound what waits for a transaction; beyond them Submit
	// answers ErrOverloaded. What is taken out of the outbox comes on top, a transaction's worth at most.
	QueueEvents int
	QueueBytes  int
	// PublishBytes bounds what is committed and waits to be published; beyond it batches
	// are left to the janitor.
	PublishBytes int64
	// BacklogEvents and BacklogBytes bound what waits in Postgres for the sinks, of this
	// process and all others; from there on Submit answers ErrBacklogFull. 0: no bound.
	BacklogEvents int64
	BacklogBytes  int64
	// EventTTL is how long an event may wait for its sinks before it becomes a dead
	// letter. 0: for ever.
	EventTTL time.Duration
	// DedupeBytes bounds the memory in which accepted events are remembered, if the pipeline
	// has a dedupe window: 15 to 19 bytes each. When it is full, the oldest are forgotten
	// before the window is over.
	DedupeBytes int
	// Outbox says whether and how the ingester takes events out of the outbox.
	Outbox OutboxConfig
	// Tracing makes spans of the events that Tracing.Accept marked; nil: none.
	Tracing *Tracing
	// FlushTimeout bounds one transaction.
	FlushTimeout time.Duration
	// StopTimeout bounds how long Run goes on after its context ended, to commit and
	// answer what was submitted.
	StopTimeout time.Duration
}

// DefaultIngesterConfig returns the settings of ingest.
func DefaultIngesterConfig() IngesterConfig {
	return IngesterConfig{
		// Their bytes and the intake's budget together fit ingest's 200 MiB: docs/operations.md.
		FlushEvents: 8192, FlushBytes: 8 << 20, BatchBytes: 1 << 20,
		QueueEvents: 100_000, QueueBytes: 64 << 20, PublishBytes: 16 << 20,
		// A disk's worth, and what a janitor can still survey.
		BacklogEvents: 100_000_000, BacklogBytes: 32 << 30,
		EventTTL: 7 * 24 * time.Hour, DedupeBytes: DefaultDedupeBytes, FlushTimeout: 10 * time.Second, StopTimeout: 10 * time.Second,
		Outbox: DefaultOutboxConfig(),
	}
}

// Validate names the first setting that cannot work.
func (c IngesterConfig) Validate() error {
	switch {
	case c.FlushEvents < 1 || c.FlushBytes < 1:
		return fmt.Errorf("flush events and bytes: %d and %d; want at least 1", c.FlushEvents, c.FlushBytes)
	case c.BatchBytes < 1<<10:
		return fmt.Errorf("batch bytes: %d; want at least 1024", c.BatchBytes)
	case c.QueueEvents < 1 || c.QueueBytes < 1:
		return fmt.Errorf("queue events and bytes: %d and %d; want at least 1", c.QueueEvents, c.QueueBytes)
	case c.PublishBytes < int64(c.BatchBytes):
		return fmt.Errorf("publish bytes: %d; want at least one batch (%d)", c.PublishBytes, c.BatchBytes)
	case c.BacklogEvents < 0 || c.BacklogBytes < 0:
		return fmt.Errorf("backlog events and bytes: %d and %d; want 0, which means no limit, or more", c.BacklogEvents, c.BacklogBytes)
	case c.EventTTL < 0:
		return fmt.Errorf("event TTL: %v; want 0, which means for ever, or more", c.EventTTL)
	case c.DedupeBytes < minDedupeBytes:
		return fmt.Errorf("dedupe bytes: %d; want at least %d (to remember nothing, set the pipeline's dedupe window to 0)", c.DedupeBytes, minDedupeBytes)
	case c.FlushTimeout <= 0 || c.StopTimeout <= 0:
		return fmt.Errorf("flush and stop timeouts: %v and %v; want more than 0", c.FlushTimeout, c.StopTimeout)
	}
	return c.Outbox.Validate()
}

// Ingester makes events durable. What was submitted while a commit was in flight is the
// next transaction: no timer, and large transactions under load.
type Ingester struct {
	cfg       IngesterConfig
	store     *Store
	dedupe    *deduper // of the goroutine of Run; nil: the pipeline remembers nothing
	publisher *Publisher
	backlog   *backlogLimit
	taker     *taker // nil: the outbox is left to others
	log       *slog.Logger
	metrics   *ingesterMetrics
	wake      chan struct{} // capacity 1
	// yields lets those who have just been answered go on before the next transaction, so that what
	// they submit next is part of it. It is for callers in this process, who do so at once: without it
	// the first of ten has a transaction alone, and the others wait for that.
	yields bool

	mu    sync.Mutex // guards what follows
	queue []*unit
	// apart are the transactions that come before those of the queue, the next one last: parts of one that a unit has
	// spoiled. They count as queued.
	apart        [][]*unit
	queuedEvents int
	queuedBytes  int
	running      bool
	stopped      bool
	failing      error // of the newest flush, nil when it committed
	failingSince time.Time

	backlogUnread bool // the newest read of it failed
}

// unit is what one Submit handed over: committed together or not at all.
type unit struct {
	events []Event
	bytes  int       // set by submit
	taken  takenRows // of the outbox: those that the events are of, deleted in their transaction
	asked  answerer
}

// answerer hears, once, what became of a unit: nil after the commit, or an error as of Accept. It
// must not block: all others wait for it.
type answerer interface{ answer(err error) }

// answerChannel keeps the answer until it is read. Its capacity is 1.
type answerChannel chan error

func (c answerChannel) answer(err error) { c <- err }

// NewIngester returns an ingester on a store and queue; it publishes by itself.
func NewIngester(cfg IngesterConfig, store *Store, queue *Queue, log *slog.Logger, meter metric.Meter) (*Ingester, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	pm, err := newPublisherMetrics(meter)
	if err != nil {
		return nil, err
	}
	im, err := newIngesterMetrics(meter)
	if err != nil {
		return nil, err
	}
	in := &Ingester{
		cfg: cfg, store: store, log: log, metrics: im,
		publisher: NewPublisher(queue, store.Lanes(), store.Grace(), cfg.PublishBytes, log, pm),
		backlog:   &backlogLimit{maxEvents: cfg.BacklogEvents, maxBytes: cfg.BacklogBytes},
		wake:      make(chan struct{}, 1),
		dedupe:    newDeduper(store, cfg.DedupeBytes),
	}
	in.publisher.tracing = cfg.Tracing
	if cfg.Outbox.Take {
		if in.taker, err = newTaker(in, meter); err != nil {
			return nil, err
		}
	}
	return in, errors.Join(observeFill(meter, in), observeDedupe(meter, in.dedupe))
}

// Accept returns once the events are committed, all in one transaction, or with an error
// that is ErrOverloaded, ErrUnavailable or ErrOutcomeUnknown. When ctx ends first its
// error is ErrOutcomeUnknown too: the commit goes on.
func (in *Ingester) Accept(ctx context.Context, events []Event) error {
	select {
	case err := <-in.Submit(events):
		return err
	case <-ctx.Done():
		return fmt.Errorf("%w: the caller stopped waiting: %w", ErrOutcomeUnknown, ctx.Err())
	}
}

// Submit queues events as one unit and never blocks. The channel gets exactly one value:
// nil after the commit, or an error as of Accept. Units submitted one after another are
// committed in that order.
func (in *Ingester) Submit(events []Event) <-chan error {
	done := make(answerChannel, 1)
	in.submit(&unit{events: events, asked: done})
	return done
}

// submit queues a unit or answers it at once. Where others have taken a row of the outbox that the unit takes, the
// answer is errTakenElsewhere, and nothing was stored.
func (in *Ingester) submit(u *unit) {
	u.bytes = 0
	for i := range u.events {
		u.bytes += len(u.events[i].Encoded) + maxEventOverhead
	}
	if len(u.events) == 0 {
		u.asked.answer(nil)
		return
	}
	if err := in.push(u); err != nil {
		u.asked.answer(err)
		return
	}
	select {
	case in.wake <- struct{}{}:
	default:
	}
}

func (in *Ingester) push(u *unit) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	switch {
	case in.stopped:
		return ErrStopping
	case len(u.taken.keys) > 0:
		// Of the outbox one unit waits at most, which is bounded by itself. Producers who come again and again would keep
		// it out for as long as they do.
	case len(in.queue) > 0 && (in.queuedEvents+len(u.events) > in.cfg.QueueEvents || in.queuedBytes+u.bytes > in.cfg.QueueBytes):
		return fmt.Errorf("%w: %d events wait to be committed", ErrOverloaded, in.queuedEvents)
	}
	if err := in.backlog.check(int64(in.queuedEvents), int64(in.queuedBytes)); err != nil {
		return err
	}
	in.queue = append(in.queue, u)
	in.queuedEvents += len(u.events)
	in.queuedBytes += u.bytes
	return nil
}

// Run commits what is submitted until ctx ends, then what was submitted before that, and
// returns when every unit has its answer. It may be called once.
func (in *Ingester) Run(ctx context.Context) error {
	in.mu.Lock()
	again := in.running
	in.running = true
	in.mu.Unlock()
	if again {
		return errors.New("the ingester is running already, or has been stopped: make a new one")
	}
	// The publisher outlives ctx: what is committed during the stop is published too.
	publishing, stopPublishing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopPublishing()
	published := make(chan struct{})
	go func() {
		defer close(published)
		_ = in.publisher.Run(publishing) // it returns no error
	}()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		in.backlog.watch(ctx, in.store, in.noteBacklog)
	}()
	taken := make(chan struct{})
	taking, stopTaking := context.WithCancel(context.WithoutCancel(ctx))
	defer stopTaking()
	go func() {
		defer close(taken)
		if in.taker != nil {
			in.taker.run(ctx, taking)
		}
	}()
	in.flushUntil(ctx)
	<-watched
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), in.cfg.StopTimeout)
	defer cancel()
	in.drain(stop)
	select {
	case <-taken:
	case <-stop.Done():
		stopTaking() // it has its answer, and does not wait until that is published
		<-taken
	}
	in.publisher.Finish()
	select {
	case <-published:
	case <-stop.Done():
		stopPublishing()
		<-published
	}
	return nil
}

// flushUntil flushes whatever is queued until ctx ends.
func (in *Ingester) flushUntil(ctx context.Context) {
	tick := time.NewTicker(catchUpEvery)
	defer tick.Stop()
	in.catchUp(ctx) // before the first event waits for it
	for ctx.Err() == nil {
		if units := in.take(); len(units) > 0 {
			in.flush(context.WithoutCancel(ctx), units)
			if in.yields {
				runtime.Gosched()
			}
			in.publisher.Wake()
			continue
		}
		select {
		case <-in.wake:
		case <-tick.C:
			in.catchUp(ctx)
		case <-ctx.Done():
		}
	}
}

// catchUp reads what other ingests accepted while this one had nothing to do. A flush does
// the same by itself if this fails.
func (in *Ingester) catchUp(ctx context.Context) {
	if in.dedupe == nil {
		return
	}
	limited, cancel := context.WithTimeout(ctx, in.cfg.FlushTimeout)
	defer cancel()
	if err := in.dedupe.catchUp(limited); ctx.Err() == nil {
		in.note(err)
	}
}

// drain answers every unit that is still queued, by a commit while stop allows.
func (in *Ingester) drain(stop context.Context) {
	in.mu.Lock()
	in.stopped = true
	in.mu.Unlock()
	for units := in.take(); len(units) > 0; units = in.take() {
		if stop.Err() != nil {
			answer(units, fmt.Errorf("%w: there was no time left", ErrStopping))
			continue
		}
		in.flush(stop, units)
		in.publisher.Wake()
	}
}

// take removes the units of the next transaction from the queue.
func (in *Ingester) take() []*unit {
	in.mu.Lock()
	defer in.mu.Unlock()
	if n := len(in.apart); n > 0 {
		units := in.apart[n-1]
		in.apart[n-1] = nil
		in.apart = in.apart[:n-1]
		in.count(units, -1)
		return units
	}
	events, bytes, n := 0, 0, 0
	for _, u := range in.queue {
		if n > 0 && (events+len(u.events) > in.cfg.FlushEvents || bytes+u.bytes > in.cfg.FlushBytes) {
			break
		}
		events += len(u.events)
		bytes += u.bytes
		n++
	}
	units := in.queue[:n:n]
	in.queue = in.queue[n:]
	if len(in.queue) == 0 {
		in.queue = nil
	}
	in.queuedEvents -= events
	in.queuedBytes -= bytes
	return units
}

// takeApart has units of a transaction that one of them has spoiled committed in two halves, before all others. So the
// one is found in a few transactions, and a stop has to wait for one of them alone.
func (in *Ingester) takeApart(units []*unit) {
	in.mu.Lock()
	defer in.mu.Unlock()
	half := len(units) / 2
	in.apart = append(in.apart, units[half:], units[:half])
	in.count(units, 1)
}

// count takes note of units that are queued, or, with a sign of -1, no longer are.
func (in *Ingester) count(units []*unit, sign int) {
	for _, u := range units {
		in.queuedEvents += sign * len(u.events)
		in.queuedBytes += sign * u.bytes
	}
}

// flush commits units in one transaction, hands the batches to the publisher and answers. Where one of several spoils the
// transaction, none is answered, and all are queued again.
func (in *Ingester) flush(ctx context.Context, units []*unit) {
	err := in.commit(ctx, units)
	var data *dataError
	if taken := errors.Is(err, errTakenElsewhere); (errors.As(err, &data) || taken) && len(units) > 1 {
		in.takeApart(units) // one unit's data, or row of the outbox, spoils the transaction of all
		return
	} else if taken {
		answer(units, err) // commits are well
		return
	}
	if data != nil {
		in.log.Error("Postgres refused the data of an event that was found valid", traceOfAny(units[0].events), "error", err)
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	in.note(err)
	failpoint.Hit("ingest/before-answer")
	answer(units, err)
	failpoint.Hit("ingest/after-answer")
}

// commit appends the units' events and enqueues the batches before anybody is answered,
// so that a caller's next event cannot overtake this one.
func (in *Ingester) commit(ctx context.Context, units []*unit) error {
	events, taken := units[0].events, takenOf(units)
	if len(units) > 1 {
		n := 0
		for _, u := range units {
			n += len(u.events)
		}
		events = make([]Event, 0, n)
		for _, u := range units {
			events = append(events, u.events...)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, in.cfg.FlushTimeout)
	defer cancel()
	began := time.Now()
	done, stored, err := in.append(ctx, events, taken)
	in.metrics.flushed(stored, time.Since(began), err)
	in.cfg.Tracing.committed(events, began, err)
	if err != nil {
		return err
	}
	in.backlog.accepted(done.counts())
	failpoint.Hit("ingest/before-enqueue")
	for i := range done.batches {
		in.publisher.Enqueue(&done.batches[i], done.bodies[i], began)
	}
	failpoint.Hit("ingest/after-enqueue")
	return nil
}

// takenOf are the rows of the outbox that units take.
func takenOf(units []*unit) (taken []takenRows) {
	for _, u := range units {
		if len(u.taken.keys) > 0 {
			taken = append(taken, u.taken)
		}
	}
	return taken
}

// append stores the events that were not accepted before, and says how many those are. taken are rows
// of the outbox that are deleted in the same transaction.
func (in *Ingester) append(ctx context.Context, events []Event, taken []takenRows) (done *appended, stored int, err error) {
	if in.dedupe == nil {
		done, err = in.store.appendWith(ctx, nil, events, in.cfg.EventTTL, in.cfg.BatchBytes, taken...)
		return done, len(events), err
	}
	done, again, err := in.dedupe.appendOnce(ctx, events, in.cfg.EventTTL, in.cfg.BatchBytes, taken...)
	if err == nil {
		in.metrics.duplicated(again)
	}
	return done, len(events) - again.local - again.log, err
}

func answer(units []*unit, err error) {
	for _, u := range units {
		u.asked.answer(err)
	}
}

// note keeps the state of the newest flush and logs its changes.
func (in *Ingester) note(err error) {
	in.mu.Lock()
	before := in.failing
	in.failing = err
	if err != nil && before == nil {
		in.failingSince = time.Now()
	}
	since := in.failingSince
	in.mu.Unlock()
	switch {
	case err != nil && before == nil:
		in.log.Error("events cannot be committed", "error", err)
	case err == nil && before != nil:
		in.log.Info("events are committed again", "failed_for", time.Since(since).Round(time.Millisecond).String())
	}
}

// Health reports why the newest flush failed and since when, or nil.
func (in *Ingester) Health() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	switch {
	case in.stopped:
		return errors.New("stopping")
	case in.failing != nil:
		return fmt.Errorf("commits fail since %s: %w", in.failingSince.UTC().Format(time.RFC3339), in.failing)
	}
	return nil
}

// queueFill returns how much waits for a transaction.
func (in *Ingester) queueFill() (events, bytes int) {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.queuedEvents, in.queuedBytes
}

// Buffers says how full the ingester's bounded buffers are.
func (in *Ingester) Buffers() []Buffer {
	events, bytes := in.queueFill()
	publish, mostPublish := in.publisher.queueFill()
	backlogEvents, backlogBytes := in.backlog.fill()
	return []Buffer{
		{Name: "events that wait for a transaction", Unit: "events", Used: int64(events), Limit: int64(in.cfg.QueueEvents)},
		{Name: "bytes that wait for a transaction", Unit: "bytes", Used: int64(bytes), Limit: int64(in.cfg.QueueBytes)},
		{Name: "bytes that wait to be published", Unit: "bytes", Used: publish, Limit: mostPublish},
		{Name: "backlog in events", Unit: "events", Used: backlogEvents, Limit: in.cfg.BacklogEvents},
		{Name: "backlog in bytes", Unit: "bytes", Used: backlogBytes, Limit: in.cfg.BacklogBytes},
	}
}
