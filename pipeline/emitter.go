package pipeline

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	"golang.org/x/sync/errgroup"
)

// Emitter is a way into a pipeline from inside a Go program: it does what the process ingest
// does, without a network between. What Emit returned nil for is in Postgres, and forwarders
// and a janitor, which run elsewhere, take it on from there. A pipeline may have any number of
// emitters, in any number of processes, beside any number of ingests.
//
// NewEmitter starts nothing. The program runs Run, once, for as long as it emits:
//
//	go func() { stopped <- emitter.Run(ctx) }()
//	if err := emitter.WaitReady(ctx); err != nil { ... }
//	err := emitter.Emit(ctx, pipeline.CloudEvent{Source: "/orders", Type: "order.created", Data: pipeline.JSONData(order)})
//
// All methods are safe for concurrent use.
type Emitter struct {
	cfg     EmitterConfig
	meter   *ownedMeter
	metrics *emitterMetrics
	checks  *Checks
	calls   doneCalls

	// ingester takes the events; nil: none are taken just now.
	ingester atomic.Pointer[Ingester]
	ready    chan struct{} // closed when events are taken for the first time
	stopped  chan struct{} // closed when none are taken any more

	mu      sync.Mutex // guards what follows
	running bool       // Run was called
	ended   bool       // and is stopping or over
	failure error      // why, if it was not asked to
	awaits  error      // what Run waits for before events are taken; nil: nothing
	parts   *emitterParts
}

// emitterParts are what an emitter has while it takes events.
type emitterParts struct {
	store    *Store
	queue    *Queue
	ingester *Ingester
	watch    *QueueWatch
}

// NewEmitter returns an emitter that Run makes work, or an error that names the settings that
// cannot work, alone or together.
func NewEmitter(cfg EmitterConfig) (*Emitter, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("emitter: %w", err)
	}
	if cfg.Meter == nil {
		cfg.Meter = noop.NewMeterProvider().Meter("")
	}
	// NATS's max_payload is checked against the event limit: a batch of that size fits too.
	cfg.Ingester.BatchBytes = min(cfg.Ingester.BatchBytes, max(cfg.MaxEventBytes, 64<<10))
	cfg.Ingester.Outbox.MaxEventBytes, cfg.Ingester.Outbox.IdentifyBy = cfg.MaxEventBytes, cfg.DedupeAttribute
	e := &Emitter{
		cfg: cfg, meter: &ownedMeter{Meter: cfg.Meter}, checks: NewChecks(),
		calls: doneCalls{limit: cfg.AsyncEvents}, ready: make(chan struct{}), stopped: make(chan struct{}),
	}
	var err error
	if e.metrics, err = newEmitterMetrics(e.meter); err != nil {
		return nil, err
	}
	e.checks.Add("emitter", e.notTaking)
	e.checks.Add("commit", e.check(func(p *emitterParts) error { return p.ingester.Health() }))
	e.checks.Degrade("backlog", e.check(func(p *emitterParts) error { return p.ingester.BacklogFull() }))
	e.checks.Degrade("outbox", e.check(func(p *emitterParts) error { return p.ingester.OutboxProblem() }))
	e.checks.Degrade("nats", e.check(func(p *emitterParts) error { return p.queue.Connected() }))
	e.checks.Degrade("queue", e.check(func(p *emitterParts) error { return p.watch.QueueProblem() }))
	e.checks.Degrade("janitor", e.check(func(p *emitterParts) error { return p.watch.JanitorProblem() }))
	e.checks.Watch(e.Buffers)
	return e, nil
}

// emitterPause is the pause between attempts to open the database.
const emitterPause = time.Second

// Run makes the emitter work until ctx ends: it opens the database, commits what is emitted and
// publishes it, and says in the pipeline that it is alive. It waits for a Postgres that does not
// answer, and for a database that is not migrated; Health says so meanwhile. NATS need not be
// there: what is emitted without it is queued later, by a janitor.
//
// When ctx ends it takes no more events, commits what was emitted before, and returns when
// every call has its answer. That takes at most the ingester's FlushTimeout, for the transaction
// under way, and twice its StopTimeout: for what waits, and for done functions of EmitAsync
// that have not returned, which is an error.
//
// All other errors are of what does not fit: the number of lanes, what NATS has for a queue, a
// password that is wrong. It may be called once; again it is ErrRunTwice.
func (e *Emitter) Run(ctx context.Context) error {
	if err := e.begin(); err != nil {
		return err
	}
	err := e.run(ctx)
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		err = nil // it was asked to stop, and did
	}
	e.end(err)
	return errors.Join(err, e.calls.finish(e.cfg.Ingester.StopTimeout), e.meter.release())
}

func (e *Emitter) run(ctx context.Context) error {
	if err := errors.Join(e.metrics.observe(e.meter), e.checks.Export(e.meter)); err != nil {
		return err
	}
	store, err := e.openStore(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	nc, err := e.connect()
	if err != nil {
		return err
	}
	defer nc.Close()
	queue, err := NewQueue(nc)
	if err != nil {
		return err
	}
	ingester, err := NewIngester(e.cfg.Ingester, store, queue, e.cfg.Logger, metric.Meter(e.meter))
	if err != nil {
		return err
	}
	ingester.yields = true
	p := &emitterParts{store: store, queue: queue, ingester: ingester, watch: NewQueueWatch(store, queue, e.cfg.MaxEventBytes)}
	return e.serve(ctx, p)
}

// openStore waits for the database.
func (e *Emitter) openStore(ctx context.Context) (*Store, error) {
	cfg := e.cfg.Store
	cfg.KeepPlans, cfg.Meter = true, e.meter
	for {
		store, err := OpenStore(ctx, cfg, 0)
		if err == nil && e.cfg.Lanes != 0 && e.cfg.Lanes != store.Lanes() {
			store.Close()
			return nil, fmt.Errorf("lanes: %d; the pipeline has %d: set Lanes to that, or to 0 for whatever it has", e.cfg.Lanes, store.Lanes())
		}
		if err == nil {
			return store, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrNotMigrated) {
			return nil, err
		}
		e.await(err)
		pause(ctx, emitterPause)
	}
}

// await notes what Run waits for.
func (e *Emitter) await(err error) {
	e.mu.Lock()
	first := e.awaits == nil
	e.awaits = err
	e.mu.Unlock()
	if first {
		e.cfg.Logger.Warn("waiting for the pipeline's database", "error", err)
	}
}

// connect returns a connection that lives as long as Run; the server need not be there yet.
func (e *Emitter) connect() (*nats.Conn, error) {
	options := append(ConnectionLog(e.cfg.Logger), e.cfg.NATSOptions...)
	return ConnectNATS(e.cfg.NATSURL, "waybill-emitter-"+e.cfg.ID, options...)
}

// serve takes events until ctx ends or the queue turns out not to fit, and answers them.
func (e *Emitter) serve(ctx context.Context, p *emitterParts) error {
	inner, stopInner := context.WithCancel(context.WithoutCancel(ctx))
	defer stopInner()
	var engine, beside errgroup.Group
	engine.Go(func() error { return p.ingester.Run(inner) })
	besides, stopBesides := context.WithCancel(ctx)
	defer stopBesides()
	beside.Go(func() error {
		defer stopBesides() // a queue that does not fit ends all
		return p.watch.Run(besides)
	})
	beside.Go(func() error { return RunHeartbeat(besides, p.queue, e.cfg.Logger, e.beat(p)) })
	e.take(p)
	e.cfg.Logger.Info("emitter runs", "id", e.cfg.ID, "lanes", p.store.Lanes())
	<-besides.Done()
	e.end(nil) // before the ingester stops: what comes later is told so
	stopInner()
	return errors.Join(engine.Wait(), beside.Wait())
}

func (e *Emitter) beat(p *emitterParts) func() Heartbeat {
	beat := NewHeartbeat(KindEmitter, e.cfg.ID, e.cfg.Version)
	beat.Database = p.store.Database()
	return func() Heartbeat {
		beat.Problem = e.checks.Summary()
		return beat
	}
}

// begin fails if it was called before.
func (e *Emitter) begin() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.running {
		return ErrRunTwice
	}
	e.running = true
	return nil
}

// take takes events from here on.
func (e *Emitter) take(p *emitterParts) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.parts, e.awaits = p, nil
	e.ingester.Store(p.ingester)
	close(e.ready)
}

// end takes no more events. failure is why, if Run was not asked to stop and it is known yet.
func (e *Emitter) end(failure error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if failure != nil {
		e.failure = failure
	}
	if e.ended {
		return
	}
	e.ended = true
	e.ingester.Store(nil)
	close(e.stopped)
}

// notTaking says why no events are taken, or is nil.
func (e *Emitter) notTaking() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.failure != nil:
		return fmt.Errorf("%w: Run failed: %w", ErrStopping, e.failure)
	case e.ended:
		return ErrStopping
	case !e.running:
		return ErrNotRunning
	case errors.Is(e.awaits, ErrUnavailable):
		return fmt.Errorf("waiting for the database: %w", e.awaits)
	case e.awaits != nil:
		return fmt.Errorf("%w: waiting for the database: %w", ErrUnavailable, e.awaits)
	case e.parts == nil:
		return fmt.Errorf("%w: the emitter is starting", ErrUnavailable)
	}
	return nil
}

// WaitReady returns nil when Run has come so far that events are taken. It may be called before Run
// is. The error is ctx's, with what is waited for, or ErrStopping: Run has ended, or is about to. Where
// Postgres does not answer, or is not migrated, Run waits for that as long as its own context lasts, so
// give ctx a deadline.
func (e *Emitter) WaitReady(ctx context.Context) error {
	select {
	case <-e.stopped:
		return e.notTaking()
	default:
	}
	select {
	case <-e.ready:
		return nil
	case <-e.stopped:
		return e.notTaking()
	case <-ctx.Done():
		if err := e.notTaking(); err != nil {
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
		return nil // at the last moment
	}
}

// Health is nil if all is well, and a *HealthError otherwise. Its Ready tells of an emitter
// that emits and of which somebody should know something: no janitor is alive on its database,
// NATS is away or has no streams, a buffer or the backlog is nearly full. One that is not
// ready emits nothing: it does not run, the database does not answer or is not migrated, or
// commits fail.
func (e *Emitter) Health() error {
	if r := e.checks.Readiness(); !r.Ready || len(r.Degraded) > 0 {
		return &HealthError{r}
	}
	return nil
}

// Readiness is Health in the form of a process's /readyz.
func (e *Emitter) Readiness() Readiness { return e.checks.Readiness() }

// Buffers says how full the emitter's bounded buffers are; those of transactions are there once
// it takes events.
func (e *Emitter) Buffers() []Buffer {
	all := []Buffer{{
		Name: "events of EmitAsync whose done has not returned", Unit: "events",
		Used: int64(e.calls.fill()), Limit: int64(e.cfg.AsyncEvents),
	}}
	if p := e.working(); p != nil {
		all = append(all, p.ingester.Buffers()...)
	}
	return all
}

// working are the parts while events are taken, or nil.
func (e *Emitter) working() *emitterParts {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ended {
		return nil
	}
	return e.parts
}

// check looks at a part while there is one.
func (e *Emitter) check(look func(*emitterParts) error) func() error {
	return func() error {
		if p := e.working(); p != nil {
			return look(p)
		}
		return nil
	}
}
