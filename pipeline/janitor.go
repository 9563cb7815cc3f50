package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"go.opentelemetry.io/otel/metric"
)

// JanitorConfig says how often and how much at a time a janitor works.
type JanitorConfig struct {
	Queue QueueConfig
	// SettleReceipts is how many receipts one transaction applies at most, and SettleBatches
	// how many batches, but for the last receipt's; SettleLinger is how long the first receipt
	// waits for company. Nobody waits for a settlement, and each is a commit that those who emit share
	// the disk with: at one event a batch, gathering saves most of the cost.
	SettleReceipts int
	SettleBatches  int
	SettleLinger   time.Duration
	// UpkeepEvery is the pause between looks at the streams and consumers.
	UpkeepEvery time.Duration
	// RetransmitEvery is the pause between passes that look for stale batches; it is longer
	// while so much waits, and is queued, that the look itself takes long.
	RetransmitEvery time.Duration
	// RetransmitBytes is how much of a (sink, lane) may be un-acked in the queue for more
	// to be retransmitted to it.
	RetransmitBytes int64
	// BarrierTimeout bounds a pass's wait for the receipts that precede it.
	BarrierTimeout time.Duration
	// ReplayWindow is how long the stream keeps what every sink has. 0: not at all.
	ReplayWindow time.Duration
	// TrimEvery is the pause between trims.
	TrimEvery time.Duration
	// ShedAbove and ShedTo are fractions of the queue's bytes: above the first the oldest
	// batches go until the second is reached, un-acked ones included.
	ShedAbove, ShedTo float64
	// ExpireEvery is the pause between looks for what is past its TTL.
	ExpireEvery time.Duration
	// DeadLetterTTL is how long dead letters are kept. 0: for ever.
	DeadLetterTTL time.Duration
	// Tracing makes spans of what is settled and retransmitted; nil: none.
	Tracing *Tracing
}

// DefaultJanitorConfig returns the settings of a janitor.
func DefaultJanitorConfig() JanitorConfig {
	return JanitorConfig{
		Queue: DefaultQueueConfig(), SettleReceipts: 1000, SettleBatches: 10_000, SettleLinger: 50 * time.Millisecond,
		UpkeepEvery: time.Second, RetransmitEvery: 2 * time.Second, RetransmitBytes: 32 << 20,
		BarrierTimeout: 30 * time.Second, ReplayWindow: 24 * time.Hour, TrimEvery: 30 * time.Second,
		ShedAbove: 0.9, ShedTo: 0.75, ExpireEvery: 5 * time.Second, DeadLetterTTL: 30 * 24 * time.Hour,
	}
}

// Validate names the first setting that cannot work.
func (c JanitorConfig) Validate() error {
	switch {
	case c.SettleReceipts < 1 || c.SettleBatches < 1:
		return fmt.Errorf("settle receipts and batches: %d and %d; want at least 1", c.SettleReceipts, c.SettleBatches)
	case c.UpkeepEvery <= 0 || c.RetransmitEvery <= 0 || c.TrimEvery <= 0 || c.ExpireEvery <= 0 || c.BarrierTimeout <= 0:
		return fmt.Errorf("upkeep, retransmit, trim and expire intervals, barrier timeout: %v, %v, %v, %v, %v; want more than 0", c.UpkeepEvery, c.RetransmitEvery, c.TrimEvery, c.ExpireEvery, c.BarrierTimeout)
	case c.RetransmitBytes < 1<<20:
		return fmt.Errorf("retransmit bytes: %d; want at least 1 MiB", c.RetransmitBytes)
	case c.ReplayWindow < 0 || c.DeadLetterTTL < 0:
		return fmt.Errorf("replay window and dead letter TTL: %v and %v; want 0 or more", c.ReplayWindow, c.DeadLetterTTL)
	case c.ShedTo <= 0 || c.ShedTo >= c.ShedAbove || c.ShedAbove > 1:
		return fmt.Errorf("shed: to %g above %g; want 0 < to < above ≤ 1", c.ShedTo, c.ShedAbove)
	}
	return c.Queue.Validate()
}

// Janitor settles deliveries, retransmits what fell out of the queue, moves what expired
// to dead_letters and keeps the streams in order. Any number run side by side.
type Janitor struct {
	cfg     JanitorConfig
	store   *Store
	queue   *Queue
	log     *slog.Logger
	metrics *janitorMetrics

	stranded stranded // of upkeep

	mu      sync.Mutex // guards what follows
	trouble map[string]trouble
	watched watched
}

// trouble is a task that fails, and since when.
type trouble struct {
	err   error
	since time.Time
}

// NewJanitor returns a janitor on a store and a queue.
func NewJanitor(cfg JanitorConfig, store *Store, queue *Queue, log *slog.Logger, meter metric.Meter) (*Janitor, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	j := &Janitor{cfg: cfg, store: store, queue: queue, log: log, trouble: map[string]trouble{}}
	m, err := newJanitorMetrics(meter, j)
	if err != nil {
		return nil, err
	}
	j.metrics = m
	return j, nil
}

// Run works until ctx ends. A task that fails is tried again; what it did not do is still
// in Postgres or in the streams.
func (j *Janitor) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { j.every(ctx, "upkeep", j.cfg.UpkeepEvery, j.upkeep) })
	wg.Go(func() { j.every(ctx, "settle", publishPause, j.settleReceipts) })
	wg.Go(func() { j.paced(ctx, "retransmit", j.retransmit) })
	wg.Go(func() { j.every(ctx, "trim", j.cfg.TrimEvery, j.trim) })
	wg.Go(func() { j.every(ctx, "expire", j.cfg.ExpireEvery, j.expire) })
	wg.Go(func() { j.every(ctx, "purge dead letters", j.cfg.ExpireEvery, j.purge) })
	wg.Go(func() { j.every(ctx, "drop removed sinks", j.cfg.ExpireEvery, j.dropRemovedSinks) })
	wg.Go(func() { j.every(ctx, "forget accepted events", j.forgetEvery(), j.forgetAccepted) })
	wg.Go(func() { j.every(ctx, "look at the tables", tablesEvery, j.lookAtTables) })
	wg.Go(func() { j.every(ctx, "look at the outbox", outboxEvery, j.lookAtOutbox) })
	wg.Go(func() { j.every(ctx, "end stalled copies", j.cfg.UpkeepEvery, j.endStalledCopies) })
	wg.Wait()
	return nil
}

// every runs a task, pauses, and so on until ctx ends.
func (j *Janitor) every(ctx context.Context, name string, rest time.Duration, task func(context.Context) error) {
	j.paced(ctx, name, func(ctx context.Context) (time.Duration, error) { return rest, task(ctx) })
}

// paced runs a task, pauses for as long as it says, and so on until ctx ends. It logs when a
// task begins to fail and when it works again.
func (j *Janitor) paced(ctx context.Context, name string, task func(context.Context) (rest time.Duration, err error)) {
	for ctx.Err() == nil {
		rest, err := task(ctx)
		if ctx.Err() != nil {
			return
		}
		j.note(name, err)
		pause(ctx, rest)
	}
}

func (j *Janitor) note(name string, err error) {
	j.mu.Lock()
	before, failing := j.trouble[name]
	switch {
	case err == nil:
		delete(j.trouble, name)
	case failing:
		j.trouble[name] = trouble{err, before.since}
	default:
		j.trouble[name] = trouble{err, time.Now()}
	}
	j.mu.Unlock()
	switch {
	case err != nil && !failing:
		j.log.Warn("task fails and is tried again", "task", name, "error", err)
	case err != nil && err.Error() != before.err.Error():
		j.log.Warn("task fails for another reason", "task", name, "error", err)
	case err == nil && failing:
		j.log.Info("task works again", "task", name, "failed_for", time.Since(before.since).Round(time.Millisecond).String())
	}
}

// Health names the tasks that fail and since when, or is nil.
func (j *Janitor) Health() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	var errs []error
	for name, t := range j.trouble {
		errs = append(errs, fmt.Errorf("%s fails since %s: %w", name, t.since.UTC().Format(time.RFC3339), t.err))
	}
	return errors.Join(errs...)
}

// The statements of the periodic work that deletes are bounded by these, and by a time limit
// each. They are tasks of their own: one that fails holds no other up.
const (
	purgeLetters = 5000
	dropBatches  = 200
)

// expire moves what is past its TTL to dead_letters. To look for it is to walk over all that waits, and
// over all that died while somebody holds a transaction open: the survey, whose pace allows for that,
// says whether there is any.
func (j *Janitor) expire(ctx context.Context) error {
	for j.Pending().Due() {
		moved, err := bounded(ctx, j.store.Expire)
		j.metrics.died(moved)
		if err != nil || len(moved) == 0 {
			return err
		}
	}
	return nil
}

// purge deletes dead letters past their own TTL.
func (j *Janitor) purge(ctx context.Context) error {
	for j.cfg.DeadLetterTTL > 0 {
		n, err := bounded(ctx, func(ctx context.Context) (int, error) {
			return j.store.PurgeDeadLetters(ctx, j.cfg.DeadLetterTTL, purgeLetters)
		})
		if err != nil || n < purgeLetters {
			return err
		}
	}
	return nil
}

// dropRemovedSinks lets no batch wait for a sink that was removed. As with what expires, the survey says
// whether any does.
func (j *Janitor) dropRemovedSinks(ctx context.Context) error {
	names, err := bounded(ctx, j.store.Sinks)
	if err != nil {
		return err
	}
	for j.Pending().WaitsForOthers(names) {
		n, err := bounded(ctx, func(ctx context.Context) (int, error) { return j.store.DropRemovedSinks(ctx, dropBatches) })
		if err != nil || n < dropBatches {
			return err
		}
	}
	return nil
}

// forgetEvery is the pause between looks at the log of accepted events: often enough for its
// window, and seldom enough that a reader of hours, such as a backup, does not hold up the
// flushes by more than a hundredth of the time.
func (j *Janitor) forgetEvery() time.Duration {
	return min(max(j.store.DedupeWindow()/20, time.Second), 30*time.Second)
}

// forgetAccepted shortens the log of accepted events. A reader that is in the way only delays
// that, and is no trouble: what is too old does no harm but to take room.
func (j *Janitor) forgetAccepted(ctx context.Context) error {
	_, err := bounded(ctx, func(ctx context.Context) (struct{}, error) { return struct{}{}, j.store.ForgetAccepted(ctx) })
	if errors.Is(err, errLogInUse) {
		j.log.Info("the log of accepted events is shortened later", "reason", err)
		return nil
	}
	return err
}

// stalledCopy is how long a COPY may take: as long as any other statement, and as long as an
// ingest that is alive goes on with it.
var stalledCopy = DefaultStoreConfig("").StatementTimeout

// endStalledCopies takes the heads from ingests that stand still.
func (j *Janitor) endStalledCopies(ctx context.Context) error {
	n, err := bounded(ctx, func(ctx context.Context) (int, error) { return j.store.EndStalledCopies(ctx, stalledCopy) })
	if n > 0 {
		j.log.Warn("transactions of ingests that stand still were ended", "transactions", n)
	}
	return err
}

// statementTimeout bounds one statement of the periodic work.
const statementTimeout = 30 * time.Second

func bounded[T any](ctx context.Context, f func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, statementTimeout)
	defer cancel()
	return f(ctx)
}
