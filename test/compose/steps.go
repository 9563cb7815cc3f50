package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/waybillhq/waybill/internal/roundtrip"
	"github.com/waybillhq/waybill/pipeline"
)

const (
	// removeTimeout bounds the removal of everything, also after a signal.
	removeTimeout = 3 * time.Minute
	// settleWithin bounds the wait until nothing that was sent is pending, and goOnWithin that
	// until load goes on after something was killed.
	settleWithin = 2 * time.Minute
	goOnWithin   = 2 * time.Minute
	// loadRate is how many events a second are offered while containers are killed.
	loadRate = 250
	// clockSource is the emitter's.
	clockSource = "/compose/clock"

	forwarders = 4
	ingests    = 2
	// killed is how many of the forwarders stay dead under load.
	killed = 2
)

// trial is one run of the test.
type trial struct {
	*project
	events int
	// sent are the ledgers of what was sent, by name of the plan.
	sent map[string]*roundtrip.Ledger
}

// try runs all steps, and takes everything down again whatever became of them.
func try(ctx context.Context, log *logger, events int) (err error) {
	p, err := newProject(ctx, log)
	if err != nil {
		return err
	}
	t := &trial{project: p, events: events, sent: map[string]*roundtrip.Ledger{}}
	defer func() {
		removing, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
		defer cancel()
		if err != nil {
			fmt.Fprintln(log.w, t.logs(removing))
		}
		log.say("take everything down, with the volumes")
		if failure := t.remove(removing); failure != nil {
			err = errors.Join(err, fmt.Errorf("take down: %w", failure))
			return
		}
		if err == nil {
			log.say("ok")
		}
	}()
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"build the image", func(ctx context.Context) error { _, err := t.run(ctx, commandTimeout, "build"); return err }},
		{"up, and wait until everything is healthy", t.up},
		{fmt.Sprintf("%d events over HTTP and gRPC", events), func(ctx context.Context) error { return t.sendAndVerify(ctx, "first") }},
		{"traces of all three processes", t.traces},
		{fmt.Sprintf("scale to %d forwarders and %d ingests", forwarders, ingests), t.scaleUp},
		{fmt.Sprintf("kill containers while %d events come in", 3*events), t.killUnderLoad},
		{"down, and up again: the volumes are still there", t.downAndUp},
		{fmt.Sprintf("%d more events", events), func(ctx context.Context) error { return t.sendAndVerify(ctx, "last") }},
	} {
		began := time.Now()
		log.say("%s", step.name)
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		log.say("    done in %.1f s", time.Since(began).Seconds())
	}
	return nil
}

// plan is one of the trial's own. Its name tells its events from others.
func (t *trial) plan(name string, events int) roundtrip.Plan {
	return roundtrip.DefaultPlan(name+"-"+t.name, events)
}

// sender sends through the proxy, as a producer outside of the containers does.
func (t *trial) sender() roundtrip.SenderConfig {
	return roundtrip.DefaultSenderConfig([]string{t.http}, []string{t.grpc})
}

// sendAndVerify sends a plan and checks that both sinks have it.
func (t *trial) sendAndVerify(ctx context.Context, name string) error {
	ledger, err := roundtrip.Send(ctx, t.sender(), t.plan(name, t.events))
	if err != nil {
		return err
	}
	t.sent[name] = ledger
	return errors.Join(ledger.NotAccepted(), t.settle(ctx), t.verify(ctx, name))
}

// scaleUp starts more containers, and checks that the lanes are spread over them.
func (t *trial) scaleUp(ctx context.Context) error {
	t.scale("forwarder", forwarders)
	t.scale("ingest", ingests)
	if err := t.up(ctx); err != nil {
		return err
	}
	return t.spread(ctx, forwarders, ingests)
}

// spread waits until so many processes are alive and each forwarder has its share of the lanes.
func (t *trial) spread(ctx context.Context, forwarders, ingests int) error {
	problem := "nobody was asked"
	for deadline := time.Now().Add(goOnWithin); time.Now().Before(deadline); {
		s, err := t.status(ctx)
		if err != nil {
			problem = err.Error()
		} else if problem = s.unspread(forwarders, ingests); problem == "" {
			return nil
		}
		if err := pause(ctx, poll); err != nil {
			return err
		}
	}
	return errors.New(problem)
}

// killUnderLoad kills one container after another while events come in. Each time load must go on
// with what is left, or once it is started again.
func (t *trial) killUnderLoad(ctx context.Context) error {
	const name = "killed"
	config := t.sender()
	config.Rate, config.Progress = loadRate, new(atomic.Int64)
	stop := make(chan struct{})
	config.Stop = stop
	type result struct {
		ledger *roundtrip.Ledger
		err    error
	}
	sent := make(chan result, 1)
	sending, cancel := context.WithCancel(ctx)
	go func() {
		// More than are needed: the kills decide when it ends.
		ledger, err := roundtrip.Send(sending, config, t.plan(name, 20*t.events))
		sent <- result{ledger, err}
	}()
	failure := t.kills(ctx, config.Progress)
	if failure == nil {
		failure = t.goOn(ctx, config.Progress, int64(3*t.events)-config.Progress.Load(), "the rest")
	}
	if failure != nil {
		cancel()
	}
	close(stop)
	r := <-sent
	cancel()
	if err := errors.Join(failure, r.err); err != nil {
		return err
	}
	t.sent[name] = r.ledger
	t.log.say("    accepted %d; %d tries had no answer", r.ledger.Accepted(), r.ledger.Unknown())
	if err := offeredAndRefused(r.ledger); err != nil {
		return err
	}
	// What stays dead is replaced.
	if err := t.up(ctx); err != nil {
		return err
	}
	return errors.Join(t.spread(ctx, forwarders, ingests), t.settle(ctx), t.verify(ctx, name))
}

// offeredAndRefused is an event that was sent and never accepted.
func offeredAndRefused(ledger *roundtrip.Ledger) error {
	for e := range ledger.Entries() {
		if !e.Accepted {
			return fmt.Errorf("event %s was not accepted: %w", e.ID, e.Err)
		}
	}
	return nil
}

// kills kills the servers and processes in turn.
func (t *trial) kills(ctx context.Context, accepted *atomic.Int64) error {
	all, err := t.of(ctx, "ingest")
	if err != nil {
		return err
	}
	// One ingest and then the other: the proxy leads to the one that is left.
	for _, c := range all {
		if err := t.without(ctx, accepted, c); err != nil {
			return err
		}
	}
	dead, err := t.of(ctx, "forwarder")
	if err != nil {
		return err
	}
	for _, c := range dead[:killed] {
		t.log.say("    kill %v, for good", c)
		if err := t.kill(ctx, c); err != nil {
			return err
		}
	}
	if err := t.spread(ctx, forwarders-killed, ingests); err != nil {
		return fmt.Errorf("the lanes of the killed forwarders: %w", err)
	}
	for _, service := range []string{"janitor", "nats", "s3"} {
		all, err := t.of(ctx, service)
		if err != nil {
			return err
		}
		if err := t.without(ctx, accepted, all[0]); err != nil {
			return err
		}
	}
	// Without Postgres nothing is accepted; producers try again until it is back.
	postgres, err := t.of(ctx, "postgres")
	if err != nil {
		return err
	}
	t.log.say("    kill %v, and start it again", postgres[0])
	if err := errors.Join(t.kill(ctx, postgres[0]), t.start(ctx, postgres[0])); err != nil {
		return err
	}
	return t.goOn(ctx, accepted, loadRate, "after postgres")
}

// without kills a container, waits until further events are accepted without it, and starts it again.
func (t *trial) without(ctx context.Context, accepted *atomic.Int64, c container) error {
	t.log.say("    kill %v", c)
	if err := t.kill(ctx, c); err != nil {
		return err
	}
	if err := t.goOn(ctx, accepted, loadRate, "without "+c.Service); err != nil {
		return err
	}
	return t.start(ctx, c)
}

// goOn waits until so many further events are accepted.
func (t *trial) goOn(ctx context.Context, accepted *atomic.Int64, further int64, when string) error {
	from := accepted.Load()
	for deadline := time.Now().Add(goOnWithin); accepted.Load() < from+further; {
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: %d of %d further events were accepted in %v", when, accepted.Load()-from, further, goOnWithin)
		}
		if err := pause(ctx, poll/10); err != nil {
			return err
		}
	}
	return nil
}

// downAndUp checks that what is stored outlives the containers: the tables, the streams and the
// archive. The endpoint remembers nothing, so that what it has then is new.
func (t *trial) downAndUp(ctx context.Context) error {
	clock, err := t.clock(ctx)
	if err != nil {
		return err
	}
	created, err := t.streamCreated(ctx)
	if err != nil {
		return err
	}
	if err := t.down(ctx); err != nil {
		return err
	}
	if err := t.up(ctx); err != nil {
		return err
	}
	now, err := t.streamCreated(ctx)
	if err != nil {
		return err
	}
	if !now.Equal(created) {
		return fmt.Errorf("nats: the stream was made at %v, before down at %v: the volume is another one", now, created)
	}
	if err := t.clockGoesOn(ctx, clock); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(t.sent)) {
		if err := t.verifyArchive(ctx, name); err != nil {
			return fmt.Errorf("after down and up: %w", err)
		}
	}
	return nil
}

// clockGoesOn waits for the next events of the emitter: their seqnums go on, so that the tables are
// those of before.
func (t *trial) clockGoesOn(ctx context.Context, before int64) error {
	for deadline := time.Now().Add(goOnWithin); ; {
		for d, err := range roundtrip.EndpointDeliveries(ctx, t.endpointAdmin, 0) {
			if err != nil {
				return err
			}
			if d.Source != clockSource {
				continue
			}
			if d.Seqnum <= before {
				return fmt.Errorf("postgres: the emitter's next event has the seqnum %d, and %d was given before down: the volume is another one", d.Seqnum, before)
			}
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("no event of the emitter came in %v", goOnWithin)
		}
		if err := pause(ctx, poll); err != nil {
			return err
		}
	}
}

// state is what is read of `waybill status -o json`.
type state struct {
	Sinks []struct {
		Sink   string `json:"sink"`
		Events int64  `json:"pending_events"`
	} `json:"sinks"`
	DeadLetters []struct {
		Sink  string `json:"sink"`
		Code  string `json:"code"`
		Count int64  `json:"count"`
	} `json:"dead_letters"`
	Lanes     int                  `json:"lanes"`
	Processes []pipeline.Heartbeat `json:"processes"`
	Owners    []struct {
		Sink      string `json:"sink"`
		Forwarder string `json:"forwarder"`
	} `json:"lane_owners"`
}

func (t *trial) status(ctx context.Context) (state, error) {
	var s state
	out, err := t.waybill(ctx, "status", "-o", "json")
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(out, &s); err != nil {
		return s, fmt.Errorf("read waybill status: %w", err)
	}
	return s, nil
}

// unspread says what is missing until so many processes are alive, every lane of every sink has an
// owner, and none has more than its share; empty: nothing.
func (s state) unspread(forwarders, ingests int) string {
	alive := map[string]int{}
	for _, p := range s.Processes {
		alive[p.Kind]++
	}
	for kind, want := range map[string]int{pipeline.KindForwarder: forwarders, pipeline.KindIngest: ingests} {
		if alive[kind] != want {
			return fmt.Sprintf("%d processes of the kind %s are alive; want %d", alive[kind], kind, want)
		}
	}
	if want := len(s.Sinks) * s.Lanes; len(s.Owners) != want || want == 0 {
		return fmt.Sprintf("%d lanes of all sinks have an owner; want %d", len(s.Owners), want)
	}
	share := (s.Lanes + forwarders - 1) / forwarders
	held := map[[2]string]int{}
	for _, o := range s.Owners {
		held[[2]string{o.Sink, o.Forwarder}]++
	}
	for owner, lanes := range held {
		if lanes > share {
			return "the forwarder " + owner[1] + " has " + strconv.Itoa(lanes) + " lanes of " + owner[0] + "; want " + strconv.Itoa(share) + " at most"
		}
	}
	return ""
}
