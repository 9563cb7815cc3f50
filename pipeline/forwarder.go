package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/metric"
)

// Forwarder carries events from the queue to the sinks: of each of its sinks it takes its
// share of the lanes, and runs a worker for each of them. It needs no Postgres. Forwarders
// with different sinks may run beside each other.
type Forwarder struct {
	cfg      ForwarderConfig
	queue    *Queue
	log      *slog.Logger
	outlets  []*outlet
	instance string
	known    map[SinkLane]*delivered // filled by New, then each used by one worker at a time
	vacant   vacancies
	paused   paused
	receipts *receipter

	holding sync.WaitGroup // one for each tenure
	epoch   leaseEpoch     // of rebalance alone

	mu      sync.Mutex // guards what follows
	running bool
	held    map[SinkLane]*tenure
	trouble trouble // with the queue, the leases or the heartbeats
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
		cfg: cfg, queue: queue, log: log, instance: uuid.NewString(),
		known: map[SinkLane]*delivered{}, held: map[SinkLane]*tenure{}, receipts: newReceipter(queue.js, m.producer),
		trouble: trouble{errors.New("not started yet"), time.Now()},
	}
	for _, s := range cfg.Sinks {
		f.outlets = append(f.outlets, &outlet{
			sink: s, limits: s.Limits(), metrics: m.of(s), slots: make(chan struct{}, cfg.InFlight), memory: cfg.SinkBytes,
			breaker: newBreaker(cfg.BreakerFailures, cfg.BreakerMin, cfg.BreakerMax),
		})
		for lane := range cfg.Lanes {
			f.known[SinkLane{s.Name(), lane}] = newDelivered()
		}
	}
	return f, m.observe(meter, f)
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
	for _, out := range f.outlets {
		beat.Sinks = append(beat.Sinks, out.sink.Name())
	}
	var wg sync.WaitGroup
	// The heartbeat ends last: who sees it end takes the lanes.
	beating, stopBeating := context.WithCancel(context.WithoutCancel(ctx))
	var looked atomic.Bool // after its lanes, once at least
	wg.Go(func() {
		_ = RunHeartbeat(beating, f.queue, f.log, func() Heartbeat { return f.beat(beat, looked.Load()) }) // the id is valid
	})
	storing, stopStoring := context.WithCancel(context.WithoutCancel(ctx))
	wg.Go(func() { f.receipts.run(storing) })
	for ctx.Err() == nil {
		f.note(f.rebalance(ctx))
		looked.Store(true)
		pause(ctx, f.cfg.RebalanceEvery)
	}
	f.giveUpAll()
	stopStoring()
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

// beat fills in what is so now. Of a forwarder that has not looked after its lanes yet it says no problem: the
// word stands until the next beat, and the problem is over in milliseconds.
func (f *Forwarder) beat(h Heartbeat, looked bool) Heartbeat {
	if err := f.Problems(); err != nil && looked {
		h.Problem = plainText(strings.ReplaceAll(err.Error(), "\n", "; "), 1<<10)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for place := range f.held {
		h.Lanes = append(h.Lanes, place.Lane)
	}
	slices.Sort(h.Lanes)
	h.Lanes = slices.Compact(h.Lanes)
	return h
}

// rebalance gives up the lanes that are another's or paused, takes those of this forwarder that
// are free, and looks for those that nobody has. While who is alive, or what is paused, cannot be
// told, everything stays as it is.
func (f *Forwarder) rebalance(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, consumerTimeout)
	defer cancel()
	live, err := LiveProcesses(ctx, f.queue, KindForwarder)
	if err != nil {
		return err
	}
	pauses, err := PausesOf(ctx, f.queue, f.sinks())
	if err != nil {
		return err
	}
	f.notePauses(pauses)
	kv, ttl, err := f.queue.bucket(ctx, leasesBucket)
	if err != nil {
		return err
	}
	if ttl <= 0 {
		return fmt.Errorf("bucket %s has no TTL, so a lane would never leave a dead forwarder: recreate it with `waybill migrate`", leasesBucket)
	}
	if _, err := f.epoch.look(ctx, f.queue.leaseBucket, ttl); err != nil {
		return err
	}
	for _, out := range f.outlets {
		if err := f.takeAll(ctx, leases{kv}, ttl, out, f.share(out, live)); err != nil {
			return err
		}
	}
	return f.lookForVacancies(ctx, ttl)
}

// sinks are the names of those that this forwarder serves.
func (f *Forwarder) sinks() (names []string) {
	for _, out := range f.outlets {
		names = append(names, out.sink.Name())
	}
	return names
}

// notePauses keeps what is paused, and logs when that changes.
func (f *Forwarder) notePauses(now map[string]SinkPauses) {
	before := f.paused.all()
	f.paused.set(now)
	for _, sink := range f.sinks() {
		if !reflect.DeepEqual(before[sink], now[sink]) {
			f.log.Info("pauses changed", "sink", sink, "all", now[sink].All != nil, "lanes", slices.Sorted(maps.Keys(now[sink].Lanes)))
		}
	}
}

// share gives up the lanes of a sink that are another's or paused, and returns those of this
// forwarder that it does not hold. The lanes are spread over those that serve the sink; one
// of an older version does not say what it serves, and counts for none.
func (f *Forwarder) share(out *outlet, live []Heartbeat) (missing []int) {
	sink := out.sink.Name()
	ids := []string{f.cfg.ID} // also before its first heartbeat is seen
	for _, h := range live {
		if slices.Contains(h.Sinks, sink) {
			ids = append(ids, h.ID)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	mine := 0
	for lane, id := range assign(f.cfg.Lanes, ids) {
		if f.paused.has(SinkLane{sink, lane}) {
			id = "" // nobody's
		}
		if id == f.cfg.ID {
			mine++
		}
		t := f.held[SinkLane{sink, lane}]
		switch {
		case id == f.cfg.ID && t == nil:
			missing = append(missing, lane)
		case id != f.cfg.ID && t != nil:
			t.giveUp()
		}
	}
	out.lanes.Store(int32(mine))
	return missing
}

// takeAll takes the lanes of a sink that are free. A lane that its former holder has not
// released yet is tried again at the next rebalance.
func (f *Forwarder) takeAll(ctx context.Context, kv leaseKV, ttl time.Duration, out *outlet, lanes []int) error {
	for _, lane := range lanes {
		holder := LeaseHolder{Forwarder: f.cfg.ID, Instance: f.instance, Since: time.Now().UTC()}
		place := SinkLane{out.sink.Name(), lane}
		l, err := f.epoch.take(ctx, kv, f.queue.leaseBucket, ttl, place, holder)
		if errors.Is(err, errLeaseTaken) {
			continue
		}
		if err != nil {
			return err
		}
		f.begin(ctx, place, out, l)
	}
	return nil
}

// lookForVacancies looks for lanes that no forwarder holds, this one's or another's: one
// that says it is alive may fail to take its share.
func (f *Forwarder) lookForVacancies(ctx context.Context, ttl time.Duration) error {
	leased, err := f.queue.leased(ctx)
	if err != nil {
		return err
	}
	var vacant []SinkLane
	for place := range f.known {
		if !leased[place] && !f.paused.has(place) {
			vacant = append(vacant, place)
		}
	}
	f.vacant.see(vacant, 2*ttl)
	return nil
}

// begin starts the work on a lane of a sink. It ends by giveUp or with the lease, not with
// ctx.
func (f *Forwarder) begin(ctx context.Context, place SinkLane, out *outlet, l *lease) {
	log := f.log.With("lane", place.Lane, "sink", place.Sink)
	t := &tenure{
		place: place, lease: l, stop: f.cfg.StopTimeout, log: log, drain: make(chan struct{}),
	}
	t.worker = f.newWorker(t, out, log)
	t.work = t.worker.run
	f.mu.Lock()
	f.held[place] = t
	f.mu.Unlock()
	out.workers.Add(1)
	out.metrics.taken()
	log.Info("lane taken")
	f.holding.Go(func() { f.hold(context.WithoutCancel(ctx), t) })
}

func (f *Forwarder) newWorker(t *tenure, out *outlet, log *slog.Logger) *worker {
	return &worker{
		cfg: &f.cfg, js: f.queue.js, log: log, lane: t.place.Lane, lease: t.lease, out: out, drain: t.drain,
		known: f.known[t.place], receipts: f.receipts,
		status: &workerStatus{lane: t.place.Lane, sink: t.place.Sink, since: time.Now().UTC()},
	}
}

func (f *Forwarder) hold(ctx context.Context, t *tenure) {
	t.run(ctx)
	f.mu.Lock()
	delete(f.held, t.place)
	f.mu.Unlock()
	t.worker.out.workers.Add(-1)
	t.worker.out.metrics.givenUp()
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
		f.log.Info("lanes are looked after", "failed_for", time.Since(before.since).Round(time.Millisecond).String())
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
// or nil: what Ready says, sinks that are down, lanes that stand still, lanes of its sinks that
// are paused, and those that no forwarder has held for longer than two TTLs of a lease.
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
	all = append(all, f.paused.problems()...)
	for _, v := range f.vacant.lasting() {
		all = append(all, fmt.Errorf("%v: since %s: no forwarder holds it", v.SinkLane, v.Since.Format(time.RFC3339)))
	}
	return errors.Join(all...)
}

// workers returns the states of the workers, by lane and sink.
func (f *Forwarder) workers() []*workerStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []*workerStatus
	for _, place := range slices.SortedFunc(maps.Keys(f.held), compareSinkLanes) {
		all = append(all, f.held[place].worker.status)
	}
	return all
}

// stuckAfter is how long a lane must have been in trouble to count as stuck: longer than a
// request is retried, and a consumer started over, without anybody having to know.
const stuckAfter = 30 * time.Second

// stuckLanes counts the held lanes that are stuck, by sink.
func (f *Forwarder) stuckLanes() map[string]int64 {
	out := map[string]int64{}
	for _, w := range f.workers() {
		if t := w.problem(); t.err != nil && time.Since(t.since) > stuckAfter {
			out[w.sink]++
		}
	}
	return out
}

// Buffers says how full the forwarder's bounded buffers are.
func (f *Forwarder) Buffers() []Buffer {
	held := map[string]int64{}
	for _, w := range f.workers() {
		held[w.sink] += int64(w.held())
	}
	var all []Buffer
	for _, out := range f.outlets {
		sink := out.sink.Name()
		all = append(all,
			Buffer{Name: "events held for " + sink, Unit: "bytes", Used: held[sink], Limit: int64(out.memory), Busy: true},
			Buffer{Name: "requests in flight to " + sink, Unit: "requests", Used: int64(len(out.slots)), Limit: int64(cap(out.slots)), Busy: true})
	}
	return all
}

// Status returns the state of the forwarder.
func (f *Forwarder) Status() ForwarderStatus {
	s := ForwarderStatus{ID: f.cfg.ID, Vacant: f.vacant.lasting(), Paused: f.paused.all()}
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
