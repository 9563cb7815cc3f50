package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/waybillhq/waybill/pipeline"
)

const (
	// outboxSessions commit at the same time where the outbox is full.
	outboxSessions = 64
	// outboxPairs are transactions with and without an event, one after another, of one session.
	outboxPairs = 300
	// outboxApart is the pause between them: above what an event takes to all its sinks.
	outboxApart = 30 * time.Millisecond
)

// What emit does about takers that sleep: as it is; never to notify; to notify always, as it would without knowing
// who sleeps.
var outboxWakes = []struct{ name, body string }{
	{"as it is", ""},
	{"never notified", `BEGIN END`},
	{"always notified", `BEGIN PERFORM pg_notify('waybill_outbox', ''); END`},
}

// outboxLoad is one transaction an event.
func outboxLoad(name string, rate float64, callers, events int) Load {
	return Load{
		Name: name, Transport: overOutbox, Bytes: 256, Events: events, Keys: 200, Connections: max(callers, outboxSessions),
		Rate: rate, Callers: callers, WarmUp: 2 * time.Second, For: 8 * time.Second,
	}
}

// runOutbox measures events that come in by transactions of their callers.
func runOutbox(ctx context.Context, b *Bench) error {
	parts, err := outboxParts(b.config.Settings)
	if err != nil {
		return err
	}
	return b.with(ctx, "outbox", nil, func(s *System) error {
		for _, part := range parts {
			if err := part.measure(s, ctx); err != nil {
				return err
			}
		}
		return nil
	})
}

// outboxPart is one question about the outbox.
type outboxPart struct {
	name    string
	measure func(*System, context.Context) error
}

// outboxParts are those that are wanted.
func outboxParts(s Settings) ([]outboxPart, error) {
	return wantedParts(s, []outboxPart{
		{"latency", (*System).outboxLatency},
		{"saturation", (*System).outboxSaturation},
		{"cost", (*System).outboxCost},
		{"rate of 64 sessions without an event", (*System).outboxPlain},
		{"notify", (*System).outboxNotify},
	}, func(p outboxPart) string { return p.name })
}

// outboxTarget judges what was measured, in a stage that did not come up to its load if saturated says so.
func (b *Bench) outboxTarget(t Target, value float64, saturated string) {
	var err error
	if saturated != "" {
		err = errors.New(saturated)
	}
	r := t.judge(value, err)
	b.report.Targets = append(b.report.Targets, r)
	b.config.Say(r.String())
}

// latencyLoad is events at a rate, of 200 keys or of one: in 16 lanes nearly each of the former is a batch of its own.
type latencyLoad struct {
	rate   float64 // events a second
	oneKey bool
}

// outboxLatencyLoads: the target is of those at outboxTargetRate.
var outboxLatencyLoads = []latencyLoad{{rate: 5}, {rate: 25}, {rate: outboxTargetRate}, {rate: outboxTargetRate, oneKey: true}}

const outboxTargetRate = 1000

func (l latencyLoad) String() string {
	name := fmt.Sprintf("outbox, %.0f/s", l.rate)
	if l.oneKey {
		name += ", one key"
	}
	return name
}

func (l latencyLoad) load(name string) Load {
	load := outboxLoad(name, l.rate, 0, 1)
	if l.oneKey {
		load.Keys = 1
	}
	return load
}

// outboxLatencies are those of one run.
type outboxLatencies struct {
	queued, endpoint Quantiles
	saturated        string
}

// outboxLatency is from the commit to a consumer of the queue, as a forwarder is one, and to the endpoint.
func (s *System) outboxLatency(ctx context.Context) error {
	runs := s.bench.config.Settings.runs()
	done := map[latencyLoad][]outboxLatencies{}
	if err := compare(runs, outboxLatencyLoads, func(l latencyLoad, run int) error {
		st, h, err := s.untilQueued(ctx, l.load(ofRun(l.String(), run, runs)))
		if err == nil {
			done[l] = append(done[l], outboxLatencies{quantilesOf(h), st.Ingress, st.Saturated})
		}
		return err
	}); err != nil {
		return err
	}
	for _, l := range outboxLatencyLoads {
		s.bench.outboxLatencyFigures(l, done[l])
	}
	return nil
}

func (b *Bench) outboxLatencyFigures(load latencyLoad, runs []outboxLatencies) {
	for _, way := range []struct {
		to string
		q  func(outboxLatencies) Quantiles
	}{
		{"a consumer of the queue, as a forwarder, has it", func(l outboxLatencies) Quantiles { return l.queued }},
		{"the endpoint has it", func(l outboxLatencies) Quantiles { return l.endpoint }},
	} {
		for _, p := range []struct {
			name string
			of   func(Quantiles) float64
		}{
			{"p50", func(q Quantiles) float64 { return q.P50 }},
			{"p95", func(q Quantiles) float64 { return q.P95 }},
			{"p99", func(q Quantiles) float64 { return q.P99 }},
		} {
			values := valuesOf(runs, func(l outboxLatencies) float64 { return p.of(way.q(l)) })
			b.overRuns(Absolute, fmt.Sprintf("%s: commit → %s, %s", load, way.to, p.name), values, "ms")
		}
	}
	if load.rate != outboxTargetRate {
		return
	}
	name := "6-outbox-1000-commit-to-forwarder-p95-at-most"
	if load.oneKey {
		name = "6-outbox-1000-of-one-key-commit-to-forwarder-p95-at-most"
	}
	saturated := ""
	for _, l := range runs {
		saturated = cmp.Or(saturated, l.saturated)
	}
	b.outboxTarget(Target{Name: name, Most: true, Limit: 10, Unit: "ms", Kind: Absolute},
		median(valuesOf(runs, func(l outboxLatencies) float64 { return l.queued.P95 })), saturated)
}

// outboxSaturation is how many events a second go all the way.
func (s *System) outboxSaturation(ctx context.Context) error {
	for _, events := range []int{1, 10, 100} {
		st, err := s.Run(ctx, outboxLoad(fmt.Sprintf("outbox, %d sessions, %d events a transaction", outboxSessions, events), 0, outboxSessions, events))
		if err != nil {
			return err
		}
		s.bench.figure(Absolute, st.Load.Name+": committed", st.AcceptRate, "events/s")
		s.bench.figure(Absolute, st.Load.Name+": delivered meanwhile", st.DeliverRate[ingressSink], "events/s")
	}
	return nil
}

// outboxCost is what an event adds to the transaction of a session that is alone.
func (s *System) outboxCost(ctx context.Context) error {
	g, sender, err := s.outboxGenerator(outboxLoad("cost", 0, 1, 1))
	if err != nil {
		return err
	}
	defer sender.close()
	ways := []bool{false, true} // with an event?
	took := map[bool][]float64{}
	var added []float64
	for pair := range outboxPairs {
		c := g.prepare(int64(pair), time.Now())
		events, err := eventsOf(c)
		if err != nil {
			return err
		}
		for _, emits := range inTurn(ways, pair) {
			pause(ctx, outboxApart) // so that nothing is taken meanwhile: it would be measured too
			// The first after a pause is slow, whichever it is; one that is taken back leaves nothing to take.
			if err := sender.rollback(ctx, events); err != nil {
				return err
			}
			var emitted []pipeline.Event
			if emits {
				emitted = events
			}
			began := time.Now()
			o := sender.transaction(ctx, emitted)
			took[emits] = append(took[emits], milliseconds(time.Since(began)))
			if emits {
				g.answered(int64(pair), c, began, o)
			}
			if o.err != nil {
				return o.err
			}
		}
		added = append(added, took[true][pair]-took[false][pair])
	}
	s.bench.figure(Absolute, "a session's transaction without an event, median", median(took[false]), "ms")
	s.bench.figure(Absolute, "the same with an event, median", median(took[true]), "ms")
	s.bench.figure(Absolute, "what an event adds, median of the differences of neighbours", median(added), "ms")
	s.bench.outboxTarget(Target{Name: "6-outbox-cost-at-most", Most: true, Limit: 0.2, Unit: "ms", Kind: Absolute}, median(added), "")
	return s.drain(ctx)
}

// outboxPlain is the rate of many sessions with an event in each transaction, and without.
func (s *System) outboxPlain(ctx context.Context) error {
	var without, with []float64
	for range s.bench.config.Settings.runs() {
		rate, err := s.plainRate(ctx)
		if err != nil {
			return err
		}
		without = append(without, rate)
		st, err := s.Run(ctx, outboxNotifyLoad("64 sessions, with an event"))
		if err != nil {
			return err
		}
		with = append(with, st.AcceptRate)
	}
	s.bench.overRuns(Absolute, "64 sessions without an event", without, "transactions/s")
	s.bench.overRuns(Absolute, "64 sessions with an event, taken and delivered meanwhile", with, "transactions/s")
	return nil
}

// outboxGenerator prepares calls to the outbox.
func (s *System) outboxGenerator(load Load) (*generator, *outboxSender, error) {
	g, err := newGenerator(load, s.ledger, addresses{s.httpURL, s.grpcAddr, s.databaseURL, s.natsURL})
	if err != nil {
		return nil, nil, err
	}
	return g, g.sender.(*outboxSender), nil
}

// outboxNotifyLoad is short: it is repeated.
func outboxNotifyLoad(name string) Load {
	load := outboxLoad(name, 0, outboxSessions, 1)
	load.WarmUp, load.For = time.Second, 4*time.Second
	return load
}

// plainRate is how many transactions without an event 64 sessions commit a second.
func (s *System) plainRate(ctx context.Context) (float64, error) {
	load := outboxNotifyLoad("64 sessions, without an event")
	set(&load.WarmUp, s.bench.config.Settings.WarmUp) // as what it is compared with
	set(&load.For, s.bench.config.Settings.For)
	s.bench.live(load.Name)
	sender, err := newOutboxSender(s.databaseURL, outboxSessions)
	if err != nil {
		return 0, err
	}
	defer sender.close()
	var mu sync.Mutex // guards what follows
	var failed error
	count := 0
	var wg sync.WaitGroup
	began := time.Now()
	from, to := began.Add(load.WarmUp), began.Add(load.WarmUp+load.For)
	for range outboxSessions {
		wg.Go(func() {
			n := 0
			for now := time.Now(); now.Before(to) && ctx.Err() == nil; now = time.Now() {
				if o := sender.transaction(ctx, nil); o.err != nil {
					mu.Lock()
					failed = o.err
					mu.Unlock()
					return
				}
				if now.After(from) {
					n++
				}
			}
			mu.Lock()
			count += n
			mu.Unlock()
		})
	}
	wg.Wait()
	return float64(count) / load.For.Seconds(), errors.Join(failed, ctx.Err())
}

// outboxNotify compares the rate of 64 sessions with what it is when nobody is ever notified, and always.
func (s *System) outboxNotify(ctx context.Context) error {
	conn, err := s.postgres(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }() // every statement was answered
	var original string
	if err := conn.QueryRow(ctx, `SELECT pg_get_functiondef('waybill.outbox_wake'::regproc)`).Scan(&original); err != nil {
		return fmt.Errorf("read what emit does: %w", err)
	}
	rates := map[string][]float64{}
	names := []string{outboxWakes[0].name, outboxWakes[1].name, outboxWakes[2].name}
	err = compare(s.bench.config.Settings.runs(), names, func(name string, run int) error {
		sql := original
		if i := slices.Index(names, name); outboxWakes[i].body != "" {
			sql = `CREATE OR REPLACE FUNCTION waybill.outbox_wake(shards integer) RETURNS void LANGUAGE plpgsql AS $$ ` + outboxWakes[i].body + ` $$`
		}
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("change what emit does: %w", err)
		}
		st, err := s.Run(ctx, outboxNotifyLoad(fmt.Sprintf("64 sessions, takers %s, run %d", name, run+1)))
		if err != nil {
			return err
		}
		rates[name] = append(rates[name], st.AcceptRate)
		return nil
	})
	if _, back := conn.Exec(ctx, original); err == nil && back != nil {
		err = fmt.Errorf("change what emit does back: %w", back)
	}
	if err != nil {
		return err
	}
	for _, name := range names {
		s.bench.overRuns(Absolute, "64 sessions, takers "+name, rates[name], "transactions/s")
	}
	share := median(rates[names[0]]) / median(rates[names[1]])
	s.bench.figure(Shape, "64 sessions: notified only when asleep by never notified", share, "ratio")
	s.bench.figure(Shape, "64 sessions: always notified by never notified", median(rates[names[2]])/median(rates[names[1]]), "ratio")
	s.bench.outboxTarget(Target{Name: "6-outbox-rate-with-notify-by-without", Limit: 0.9, Kind: Shape}, share, "")
	return nil
}
