package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/internal/roundtrip"
	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/test/faults/audit"
)

const (
	// runLimit is how long a run may take, from the first process to the verdict.
	runLimit = 75 * time.Second
	// auditTime is what is kept of it for reading everything back and for stopping.
	auditTime = 8 * time.Second
	// leastRecovery is what a run gets to recover in any case.
	leastRecovery = 15 * time.Second

	// aftermath is how long after its end a fault may still lead to doubles: above the
	// lease of a lane and the pauses between tries.
	aftermath = 15 * time.Second

	// Keys of the load: sources × types.
	loadSources, loadTypes = 20, 5
	// loadMaxBytes bounds the data of an event.
	loadMaxBytes = 8 << 10

	ingressSink, archiveSink = "ingress", "archive"
)

// trial is one run.
type trial struct {
	seed     uint64
	settings settings
	under    *condition
	out      io.Writer
	system   *system
	began    time.Time // the run
	loaded   time.Time // the load

	mu     sync.Mutex // guards what follows
	steps  []*played
	faults []string // of the harness itself
}

// played is a step and when it really took place, from the start of the load.
type played struct {
	step
	injected, healed time.Duration
	fault            fault
	proof            string         // of what it did, where it can tell
	idle             bool           // it can tell, and did nothing
	hits             map[string]int // what the fault hit; nil: it does not tell
}

// runOne runs one seed. The error is one of the harness; violations are in the result.
func runOne(ctx context.Context, s settings, seed uint64, w io.Writer) (*result, error) {
	kinds, err := selectKinds(s.faults)
	if err != nil {
		return nil, err
	}
	under, err := s.conditionOf(seed)
	if err != nil {
		return nil, err
	}
	if kinds = under.allows(kinds); len(kinds) == 0 {
		return nil, fmt.Errorf("none of the faults can take place under the condition %s", under.name)
	}
	s.length = max(s.length, under.atLeast)
	t := &trial{seed: seed, settings: s, under: under, out: w, began: time.Now()}
	for _, step := range draw(seed, s.length, kinds) {
		t.steps = append(t.steps, &played{step: step})
	}
	t.say("seed %d: %d faults in %v, condition: %s", seed, len(t.steps), s.length, under.name)
	for _, step := range t.steps {
		t.say("  %v", step.step)
	}
	if t.system, err = startSystem(ctx, seed, s.binary, t.setups()); err != nil {
		return nil, err
	}
	t.system.points.seed = seed
	result, err := t.run(ctx)
	err = errors.Join(err, t.end(result))
	if ctx.Err() != nil {
		return nil, errors.New("interrupted")
	}
	return result, err
}

// setups are those of the condition and of the kinds of faults in the schedule.
func (t *trial) setups() []setup {
	var all []setup
	if t.under.setup != nil {
		all = append(all, t.under.setup)
	}
	var seen []*kind
	for _, p := range t.steps {
		if p.kind.setup != nil && !slices.Contains(seen, p.kind) {
			all, seen = append(all, p.kind.setup), append(seen, p.kind)
		}
	}
	return all
}

// end stops everything, completes the result and removes what is not kept.
func (t *trial) end(r *result) error {
	stopped := t.system.stop()
	var err error
	if r != nil {
		if stopped != nil {
			r.Violations = append(r.Violations, "at the end: "+stopped.Error())
		}
		r.Seconds = time.Since(t.began).Seconds()
		if limit := t.runLimit(); r.Seconds > limit.Seconds() {
			r.violation("the run took %.1f s; the limit is %v", r.Seconds, limit)
		}
		if len(r.Violations) > 0 || t.settings.keep {
			r.Logs, err = t.keepLogs()
		}
		err = errors.Join(err, r.save(t.settings.out), r.print(t.out))
	}
	return errors.Join(err, t.system.remove())
}

func (t *trial) runLimit() time.Duration { return time.Duration(t.settings.slack) * runLimit }

func (t *trial) say(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, _ = fmt.Fprintf(t.out, format+"\n", args...) // progress; the result is in a file
}

// run puts the load on, breaks and mends things, and judges.
func (t *trial) run(ctx context.Context) (*result, error) {
	t.say("  everything runs after %.1f s", time.Since(t.began).Seconds())
	endCondition, err := t.under.begin(ctx, t.system)
	if err != nil {
		return nil, errors.Join(err, endCondition(context.WithoutCancel(ctx)))
	}
	stop, sent := make(chan struct{}), make(chan sending, 1)
	t.loaded = time.Now()
	sendCtx, cancelSend := context.WithCancel(ctx)
	defer cancelSend()
	go func() { sent <- t.send(sendCtx, stop) }()
	outbox := &outboxLoad{url: t.system.stack.DatabaseURL, name: fmt.Sprintf("seed-%d-outbox", t.seed), seed: t.seed}
	emitted := make(chan struct{})
	go func() { defer close(emitted); outbox.run(sendCtx, stop) }()
	t.play(ctx)
	sleep(ctx, time.Until(t.loaded.Add(t.settings.length)))
	close(stop)
	if err := endCondition(context.WithoutCancel(ctx)); err != nil {
		t.fail("end of the condition %s: %v", t.under.name, err)
	}
	healed := t.lastHealed()
	var load sending
	select {
	case load = <-sent:
	case <-time.After(time.Until(t.began.Add(t.runLimit()))):
		cancelSend()
		load = <-sent
	}
	select {
	case <-emitted:
	case <-time.After(time.Until(t.began.Add(t.runLimit()))):
		cancelSend()
		<-emitted
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if load.err != nil && !errors.Is(load.err, context.Canceled) {
		return nil, load.err
	}
	settled := t.settle(ctx)
	if settled != nil {
		if err := t.system.writeRemains(ctx); err != nil {
			t.fail("%v", err)
		}
	}
	recovery := time.Since(healed)
	evidence, err := t.gather(ctx, load.ledger)
	if err != nil {
		return nil, err
	}
	evidence.Sent = append(evidence.Sent, outbox.entries...)
	if t.losesTakers() {
		evidence.Overtaken = func(source string) bool { return strings.HasPrefix(source, outboxSources) }
	}
	r := t.judge(evidence, settled, recovery)
	r.judgeOutbox(outbox, evidence)
	r.judgeWays(load.config, evidence)
	r.RetriedCalls, r.RetriedEvents = load.retried.tries.Load(), load.retried.events.Load()
	return r, nil
}

// sending is what became of the load.
type sending struct {
	config  roundtrip.SenderConfig
	ledger  *roundtrip.Ledger
	err     error
	retried *retries
}

func (t *trial) send(ctx context.Context, stop <-chan struct{}) sending {
	out := sending{retried: &retries{}}
	config := roundtrip.DefaultSenderConfig(t.system.http, t.system.grpc)
	config.Emitters = []*pipeline.Emitter{t.system.emitter}
	config.Rate, config.Stop, config.Told = t.settings.rate, stop, out.retried.add
	events := int(t.settings.rate * (t.settings.length + t.runLimit()).Seconds())
	plan := roundtrip.DefaultPlan(fmt.Sprintf("seed-%d", t.seed), events)
	plan.Seed, plan.Sources, plan.Types, plan.MaxBytes = t.seed, loadSources, loadTypes, loadMaxBytes
	if t.under.loadBytes > 0 {
		plan.MaxBytes = t.under.loadBytes
	}
	out.config = config
	out.ledger, out.err = roundtrip.Send(ctx, config, plan)
	return out
}

// play injects and heals every step at its time, and returns when all are healed.
func (t *trial) play(ctx context.Context) {
	var wg sync.WaitGroup
	for _, p := range t.steps {
		wg.Go(func() { t.playStep(ctx, p) })
	}
	wg.Wait()
}

func (t *trial) playStep(ctx context.Context, p *played) {
	sleep(ctx, time.Until(t.loaded.Add(p.At)))
	if ctx.Err() != nil {
		return
	}
	f, began := p.kind.make(t.system, p.on), time.Now()
	t.mark(&p.injected)
	t.say("  %5.1fs  %s %s", time.Since(t.loaded).Seconds(), p.kind.name, p.on)
	if err := f.inject(ctx); err != nil && ctx.Err() == nil {
		t.fail("%s %s: %v", p.kind.name, p.on, err)
	}
	sleep(ctx, time.Until(began.Add(p.Hold))) // to inject it may take a while
	if err := f.heal(context.WithoutCancel(ctx)); err != nil {
		t.fail("mend %s %s: %v", p.kind.name, p.on, err)
	}
	t.mark(&p.healed)
	t.prove(p, f)
	p.hits = hitsOf(f) // read once play has returned
	t.say("  %5.1fs  %s %s is over", time.Since(t.loaded).Seconds(), p.kind.name, p.on)
}

// prove keeps what a fault says that it did.
func (t *trial) prove(p *played, f fault) {
	told, ok := f.(proven)
	if !ok {
		return
	}
	n, what := told.proof()
	if what == "" {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	p.fault, p.idle, p.proof = f, n == 0, fmt.Sprintf("%d %s", n, what)
}

func (t *trial) mark(at *time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	*at = time.Since(t.loaded)
}

func (t *trial) fail(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.faults = append(t.faults, fmt.Sprintf(format, args...))
}

func (t *trial) lastHealed() time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	last := time.Duration(0)
	if t.under.standing != nil {
		last = time.Since(t.loaded)
	}
	for _, p := range t.steps {
		last = max(last, p.healed)
	}
	return t.loaded.Add(last)
}

// settle waits until no batch waits for a sink, and says what remains where that takes
// too long.
func (t *trial) settle(ctx context.Context) error {
	limit := max(time.Until(t.began.Add(t.runLimit()-auditTime)), leastRecovery)
	return poll(ctx, limit, "everything is settled", func(ctx context.Context) error {
		conn, err := pgx.Connect(ctx, t.system.stack.DatabaseURL)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close(ctx) }() // it only reads
		var batches int
		var waiting string
		err = conn.QueryRow(ctx, `
			SELECT count(*), coalesce(string_agg(DISTINCT array_to_string(waiting_for, ' and '), ', '), '')
			FROM waybill.batches`).Scan(&batches, &waiting)
		if err == nil && batches > 0 {
			err = fmt.Errorf("%d batches wait for %s", batches, waiting)
		}
		var rows int
		if err == nil {
			err = conn.QueryRow(ctx, `SELECT count(*) FROM waybill.outbox`).Scan(&rows)
		}
		if err == nil && rows > 0 {
			err = fmt.Errorf("%d rows wait in the outbox", rows)
		}
		return err
	})
}

// gather reads back what everybody has.
func (t *trial) gather(ctx context.Context, ledger *roundtrip.Ledger) (*evidence, error) {
	e := &evidence{Evidence: audit.Evidence{Archive: archiveSink, Sinks: map[string][]roundtrip.Delivery{}, Retransmitted: map[int64]bool{}}}
	for entry := range ledger.Entries() {
		e.Sent = append(e.Sent, entry)
	}
	e.Codes = append(e.Codes, t.under.effect.codes...)
	if t.under.effect.doubles {
		e.Doubling = append(e.Doubling, audit.Window{From: t.loaded, To: time.Now()})
	}
	for _, p := range t.steps {
		e.Codes = append(e.Codes, p.kind.effect.codes...)
		if p.kind.effect.doubles {
			e.Doubling = append(e.Doubling, audit.Window{From: t.loaded.Add(p.injected), To: t.loaded.Add(p.healed + aftermath)})
		}
	}
	for d, err := range roundtrip.FileDeliveries(t.system.recordsFile()) {
		if err != nil {
			return nil, err
		}
		e.Sinks[ingressSink] = append(e.Sinks[ingressSink], d)
	}
	reader, err := t.system.stack.S3.ArchiveReader(ctx)
	if err != nil {
		return nil, err
	}
	for d, err := range roundtrip.ArchiveDeliveries(ctx, reader, nil) {
		if err != nil {
			e.archive = err
			break
		}
		e.Sinks[archiveSink] = append(e.Sinks[archiveSink], d)
	}
	err = t.system.untilPostgres(ctx, e.readPostgres)
	for _, p := range t.steps {
		if w, ok := p.fault.(witness); ok {
			w.testify(e)
		}
	}
	return e, err
}

// keepLogs moves what tells of the run to the directory of the results.
func (t *trial) keepLogs() (string, error) {
	dir := filepath.Join(t.settings.out, fmt.Sprintf("seed-%d", t.seed))
	if err := os.RemoveAll(dir); err != nil {
		return "", fmt.Errorf("keep the logs: %w", err)
	}
	if err := os.CopyFS(filepath.Join(dir, "logs"), os.DirFS(filepath.Join(t.system.dir, "logs"))); err != nil {
		return "", fmt.Errorf("keep the logs: %w", err)
	}
	records, err := os.ReadFile(t.system.recordsFile())
	if err != nil {
		return "", fmt.Errorf("keep the endpoint's records: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "endpoint-records.ndjson"), records, 0o644); err != nil {
		return "", fmt.Errorf("keep the endpoint's records: %w", err)
	}
	return dir, t.system.watch.saveLog(filepath.Join(dir, "supervisors.log"))
}
