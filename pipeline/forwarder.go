package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/metric"
)

// Forwarder carries events from the queue to the sinks: it takes its share of the lanes,
// and runs a worker for each sink of each of them. It needs no Postgres.
type Forwarder struct {
	cfg      ForwarderConfig
	queue    *Queue
	log      *slog.Logger
	metrics  *forwarderMetrics
	outlets  []*outlet
	instance string
	known    map[laneSink]*delivered // filled by New, then each used by one worker at a time

	holding sync.WaitGroup // one for each tenure

	mu      sync.Mutex // guards what follows
	running bool
	held    map[int]*tenure
	trouble trouble // with the queue, the leases or the heartbeats
}

type laneSink struct {
	lane int
	sink string
}

// NewForwarder returns a forwarder on a queue. It does not probe the sinks: the caller does,
// who knows whether to wait for a destination that is away or to refuse to start.
func NewForwarder(cfg ForwarderConfig, queue *Queue, log *slog.Logger, meter metric.Meter) (*Forwarder, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	m, err := newForwarderMetrics(meter)
	if err != nil {
		return nil, err
	}
	f := &Forwarder{
		cfg: cfg, queue: queue, log: log, metrics: m, instance: uuid.NewString(),
		known: map[laneSink]*delivered{}, held: map[int]*tenure{},
		trouble: trouble{errors.New("not started yet"), time.Now()},
	}
	for _, s := range cfg.Sinks {
		f.outlets = append(f.outlets, &outlet{
			sink: s, limits: s.Limits(), metrics: m.of(s), slots: make(chan struct{}, cfg.InFlight),
			breaker: newBreaker(cfg.BreakerFailures, cfg.BreakerMin, cfg.BreakerMax),
		})
		for lane := range cfg.Lanes {
			f.known[laneSink{lane, s.Name()}] = newDelivered()
		}
	}
	return f, nil
}

// Run works until ctx ends; then the requests in flight may finish within
// cfg.StopTimeout, and the lanes are released. An error is one of configuration: streams
// that do not fit. What is missing or away is waited for.
func (f *Forwarder) Run(ctx context.Context) error {
	f.mu.Lock()
	again := f.running
	f.running = true
	f.mu.Unlock()
	if again {
		return errors.New("the forwarder is running already, or has been stopped: make a new one")
	}
	if err := f.awaitQueue(ctx); err != nil || ctx.Err() != nil {
		return err
	}
	beat := NewHeartbeat(KindForwarder, f.cfg.ID, f.cfg.Version)
	var wg sync.WaitGroup
	// The heartbeat ends last: who sees it end takes the lanes.
	beating, stopBeating := context.WithCancel(context.WithoutCancel(ctx))
	wg.Go(func() {
		_ = RunHeartbeat(beating, f.queue, f.log, func() Heartbeat { return f.beat(beat) }) // the id is valid
	})
	for ctx.Err() == nil {
		f.note(f.rebalance(ctx))
		pause(ctx, f.cfg.RebalanceEvery)
	}
	f.giveUpAll()
	stopBeating()
	wg.Wait()
	return nil
}

// awaitQueue returns when the queue is there, or with an error that waiting does not mend.
func (f *Forwarder) awaitQueue(ctx context.Context) error {
	for ctx.Err() == nil {
		check, cancel := context.WithTimeout(ctx, consumerTimeout)
		err := f.queue.Check(check, f.cfg.Lanes, 0)
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			return nil
		}
		if !errors.Is(err, ErrNotReady) {
			return err
		}
		f.note(err)
		pause(ctx, f.cfg.RebalanceEvery)
	}
	return nil
}

func (f *Forwarder) beat(h Heartbeat) Heartbeat {
	if err := f.Problems(); err != nil {
		h.Problem = plainText(err.Error(), 1<<10)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for lane := range f.held {
		h.Lanes = append(h.Lanes, lane)
	}
	slices.Sort(h.Lanes)
	return h
}

// rebalance gives up the lanes that are another's and takes those of this forwarder that
// are free. While who is alive cannot be told, everything stays as it is.
func (f *Forwarder) rebalance(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, consumerTimeout)
	defer cancel()
	live, err := LiveProcesses(ctx, f.queue, KindForwarder)
	if err != nil {
		return err
	}
	ids := []string{f.cfg.ID} // also before its first heartbeat is seen
	for _, h := range live {
		ids = append(ids, h.ID)
	}
	var missing []int
	for lane, id := range assign(f.cfg.Lanes, ids) {
		t := f.tenure(lane)
		switch {
		case id == f.cfg.ID && t == nil:
			missing = append(missing, lane)
		case id != f.cfg.ID && t != nil:
			t.giveUp()
		}
	}
	return f.takeAll(ctx, missing)
}

func (f *Forwarder) tenure(lane int) *tenure {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.held[lane]
}

// takeAll takes the lanes that are free. A lane that its former holder has not released
// yet is tried again at the next rebalance.
func (f *Forwarder) takeAll(ctx context.Context, lanes []int) error {
	if len(lanes) == 0 {
		return nil
	}
	kv, ttl, err := f.queue.bucket(ctx, leasesBucket)
	if err != nil {
		return err
	}
	if ttl <= 0 {
		return fmt.Errorf("bucket %s has no TTL, so a lane would never leave a dead forwarder: recreate it with `waybill migrate`", leasesBucket)
	}
	for _, lane := range lanes {
		holder := LeaseHolder{Forwarder: f.cfg.ID, Instance: f.instance, Since: time.Now().UTC()}
		l, err := takeLease(ctx, kv, ttl, lane, holder)
		if errors.Is(err, errLeaseTaken) {
			continue
		}
		if err != nil {
			return err
		}
		f.begin(ctx, lane, l)
	}
	return nil
}

// begin starts the work on a lane. It ends by giveUp or with the lease, not with ctx.
func (f *Forwarder) begin(ctx context.Context, lane int, l *lease) {
	log := f.log.With("lane", lane)
	t := &tenure{
		lane: lane, lease: l, stop: f.cfg.StopTimeout, log: log, drain: make(chan struct{}),
	}
	for _, out := range f.outlets {
		t.workers = append(t.workers, f.newWorker(t, out, log))
	}
	f.mu.Lock()
	f.held[lane] = t
	f.mu.Unlock()
	f.metrics.lanes.Add(ctx, 1)
	f.metrics.takeovers.Add(ctx, 1)
	log.Info("lane taken")
	f.holding.Go(func() { f.hold(context.WithoutCancel(ctx), t) })
}

func (f *Forwarder) newWorker(t *tenure, out *outlet, log *slog.Logger) *worker {
	return &worker{
		cfg: &f.cfg, js: f.queue.js, lane: t.lane, lease: t.lease, out: out, drain: t.drain,
		log:    log.With("sink", out.sink.Name()),
		known:  f.known[laneSink{t.lane, out.sink.Name()}],
		status: &workerStatus{lane: t.lane, sink: out.sink.Name(), since: time.Now().UTC()},
	}
}

func (f *Forwarder) hold(ctx context.Context, t *tenure) {
	t.run(ctx)
	f.mu.Lock()
	delete(f.held, t.lane)
	f.mu.Unlock()
	f.metrics.lanes.Add(ctx, -1)
	t.log.Info("lane given up")
}

// giveUpAll returns when no lane is held any more.
func (f *Forwarder) giveUpAll() {
	f.mu.Lock()
	for _, t := range f.held {
		t.giveUp()
	}
	f.mu.Unlock()
	f.holding.Wait()
}

// note keeps what is wrong with the queue, and logs when that begins and ends.
func (f *Forwarder) note(err error) {
	f.mu.Lock()
	before := f.trouble
	f.trouble = before.update(err)
	f.mu.Unlock()
	switch {
	case err != nil && (before.err == nil || before.err.Error() != err.Error()):
		f.log.Warn("lanes cannot be looked after", "error", err)
	case err == nil && before.err != nil:
		f.log.Info("lanes are looked after", "failed_for", time.Since(before.since).Round(time.Millisecond))
	}
}

// Ready reports what keeps this forwarder from doing its part, and since when, or nil: that
// the queue cannot be reached or does not fit. A sink that is down is none of its faults.
func (f *Forwarder) Ready() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if t := f.trouble; t.err != nil {
		return fmt.Errorf("since %s: %w", t.since.UTC().Format(time.RFC3339), t.err)
	}
	return nil
}

// Problems reports everything that keeps events from being delivered, each with since when,
// or nil: what Ready says, sinks that are down, and lanes that stand still.
func (f *Forwarder) Problems() error {
	var all []error
	if err := f.Ready(); err != nil {
		all = append(all, fmt.Errorf("queue: %w", err))
	}
	for _, out := range f.outlets {
		if t := out.breaker.state(); t.err != nil {
			all = append(all, fmt.Errorf("sink %s is down since %s: %w", out.sink.Name(), t.since.UTC().Format(time.RFC3339), t.err))
		}
	}
	for _, w := range f.workers() {
		if t := w.problem(); t.err != nil {
			all = append(all, fmt.Errorf("lane %d of %s: since %s: %w", w.lane, w.sink, t.since.UTC().Format(time.RFC3339), t.err))
		}
	}
	return errors.Join(all...)
}

// workers returns the states of the workers, by lane and sink.
func (f *Forwarder) workers() []*workerStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []*workerStatus
	for _, t := range f.held {
		for _, w := range t.workers {
			all = append(all, w.status)
		}
	}
	slices.SortFunc(all, func(a, b *workerStatus) int {
		return cmp.Or(cmp.Compare(a.lane, b.lane), cmp.Compare(a.sink, b.sink))
	})
	return all
}

// Status returns the state of the forwarder.
func (f *Forwarder) Status() ForwarderStatus {
	s := ForwarderStatus{ID: f.cfg.ID}
	for _, out := range f.outlets {
		one := SinkStatus{Sink: out.sink.Name()}
		if t := out.breaker.state(); t.err != nil {
			one.Down, one.DownSince = t.err.Error(), t.since.UTC()
		}
		s.Sinks = append(s.Sinks, one)
	}
	for _, w := range f.workers() {
		s.Workers = append(s.Workers, w.snapshot())
	}
	return s
}
