package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"
)

const (
	// keptUp is the part of what is offered that must be accepted, delivered and settled in
	// the same time, but for the jitter, for an interval to be one that is kept up.
	keptUp = 0.97
	// loadSlack is how long what is offered may be on its way at the end of a step: less than
	// slack, since a step is short, and what stays behind in it adds up.
	loadSlack = 3 * time.Second
	// steady is the part of a step after which is measured.
	steady = 0.25
	// halvings is how often the search goes between the last two intervals.
	halvings = 3
	// drainWithin bounds the wait for what a step has left behind.
	drainWithin = 5 * time.Minute
)

// load is a search for the highest rate that workflows keep up.
type load struct {
	workflows   int
	first, last time.Duration // longest and shortest interval
	length      time.Duration // of each step
	sample      time.Duration
	// jitter is how much longer events may be on their way at the end of what is measured than
	// at its beginning.
	jitter time.Duration
}

func (l load) validate() error {
	switch {
	case l.workflows < 1:
		return fmt.Errorf("workflows: %d; want at least 1", l.workflows)
	case l.last <= 0 || l.first < l.last:
		return fmt.Errorf("first %v, last %v: want positive intervals, the longer one first", l.first, l.last)
	case l.sample < leastSample || l.length < 3*l.sample:
		return fmt.Errorf("for: %v; want at least three times the time between looks, and %v for that", l.length, leastSample)
	}
	return nil
}

// step is what was measured while workflows emitted at one interval.
type step struct {
	interval time.Duration
	offered  float64 // events a second, by the interval
	// Rates of the time after the first part of the step, in events a second.
	accepted, delivered, settled float64
	pending                      int64         // at the end
	p50, p99                     time.Duration // until an event was accepted
	latest                       time.Duration // most that a workflow was late
	faults                       []string      // why it is not kept up
}

func (s step) keptUp() bool { return len(s.faults) == 0 }

func (s step) String() string {
	verdict := "kept up"
	if !s.keptUp() {
		verdict = "NOT kept up: " + s.faults[0]
	}
	return fmt.Sprintf("every %-9v offered %7.0f/s  accepted %7.0f/s  delivered %7.0f/s  settled %7.0f/s  pending %6d  accept p50 %v, p99 %v, late by %v at most  %s",
		s.interval, s.offered, s.accepted, s.delivered, s.settled, s.pending, short(s.p50), short(s.p99), short(s.latest), verdict)
}

func short(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }

// measure lets the workflows emit at an interval and returns how it went.
type measure func(ctx context.Context, interval time.Duration) (step, error)

// run searches and prints.
func (l load) run(ctx context.Context, s *system, w io.Writer) error {
	log := newLog(w)
	log.say("%d workflows at ever shorter intervals, %v each", l.workflows, l.length)
	steps, err := l.search(ctx, func(ctx context.Context, interval time.Duration) (step, error) {
		return l.step(ctx, s, log, interval)
	})
	if err != nil {
		return err
	}
	best, found := highest(steps)
	if !found {
		return fmt.Errorf("not even an event every %v by each of %d workflows is kept up: %s", l.first, l.workflows, steps[0].faults[0])
	}
	log.say("highest rate kept up: %.0f events a second, an event every %v by each of %d workflows", best.settled, best.interval, l.workflows)
	if best.interval <= l.last {
		log.say("which is the shortest interval: --last names a shorter one")
	}
	return nil
}

// search halves the interval until it is not kept up or the shortest, and then looks between the
// last two. It returns what it measured, in that order.
func (l load) search(ctx context.Context, measure measure) ([]step, error) {
	var steps []step
	try := func(interval time.Duration) (bool, error) {
		s, err := measure(ctx, interval)
		steps = append(steps, s)
		return s.keptUp(), err
	}
	interval, kept := l.first, time.Duration(0)
	for {
		up, err := try(interval)
		if err != nil || (up && interval <= l.last) {
			return steps, err
		}
		if !up {
			break
		}
		kept, interval = interval, max(interval/2, l.last)
	}
	if kept == 0 {
		return steps, nil
	}
	for lost := interval; len(steps) > 0; {
		between := (kept + lost) / 2
		up, err := try(between)
		if err != nil {
			return steps, err
		}
		if up {
			kept = between
		} else {
			lost = between
		}
		if kept-lost <= interval>>halvings {
			return steps, nil
		}
	}
	return steps, nil
}

// highest is the step with the shortest interval of those that were kept up.
func highest(steps []step) (best step, found bool) {
	for _, s := range steps {
		if s.keptUp() && (!found || s.interval < best.interval) {
			best, found = s, true
		}
	}
	return best, found
}

// step measures one interval, and waits until nothing of it is left.
func (l load) step(ctx context.Context, s *system, log *logger, interval time.Duration) (step, error) {
	run := strconv.FormatInt(time.Now().UnixMilli(), 36)
	o, err := observe(ctx, s)
	if err != nil {
		return step{}, err
	}
	tally := newTally()
	running, end := context.WithCancel(ctx)
	var emitting sync.WaitGroup
	defer emitting.Wait()
	defer end() // after an error nobody looks any more
	until := o.began.Add(l.length)
	for _, flow := range workflows(run, l.workflows, interval, s.senders) {
		emitting.Go(func() { flow.run(running, o.began, until, tally) })
	}
	var samples []sample
	for n := 1; time.Duration(n)*l.sample <= l.length; n++ {
		if !sleepUntil(ctx, o.began.Add(time.Duration(n)*l.sample)) {
			return step{}, ctx.Err()
		}
		now, err := o.look(ctx, tally)
		if err != nil {
			return step{}, err
		}
		samples = append(samples, now)
	}
	emitting.Wait()
	out := l.judge(interval, samples, tally)
	log.say("%v", out)
	seen := &watched{prefix: sourceOf(run), observer: o, tally: tally, samples: samples}
	return out, seen.drain(ctx)
}

// judge makes a step of what was seen of it.
func (l load) judge(interval time.Duration, samples []sample, tally *tally) step {
	s := step{
		interval: interval, offered: float64(l.workflows) / interval.Seconds(),
		p50: tally.quantile(50), p99: tally.quantile(99), latest: tally.latest,
	}
	from := samples[min(int(steady*float64(len(samples))), len(samples)-2)]
	to := samples[len(samples)-1]
	took := (to.at - from.at).Seconds()
	s.accepted = float64(to.accepted-from.accepted) / took
	s.delivered = float64(to.received-from.received) / took
	s.settled = float64(to.settled()-from.settled()) / took
	s.pending = to.waiting()
	if err := tally.problem(); err != nil {
		s.faults = append(s.faults, err.Error())
	}
	for _, rate := range []struct {
		what  string
		value float64
	}{{"accepted", s.accepted}, {"delivered", s.delivered}, {"settled", s.settled}} {
		if rate.value*took < keptUp*s.offered*took-float64(roomFor(s.offered, l.jitter)) {
			s.faults = append(s.faults, fmt.Sprintf("%.0f%% of what is offered is %s", 100*rate.value/s.offered, rate.what))
		}
	}
	if room := roomFor(s.offered, loadSlack); s.pending > room {
		s.faults = append(s.faults, fmt.Sprintf("%d events are pending at the end; want %d at most", s.pending, room))
	}
	before := sample{}
	for _, now := range samples {
		if err := judgeInterval(before, now); err != nil {
			s.faults = append(s.faults, err.Error())
		}
		before = now
	}
	return s
}

// drain waits until nothing is pending, and checks that the endpoint and the archive have what
// was accepted: an event at least once, the archive once.
func (seen *watched) drain(ctx context.Context) error {
	for deadline := time.Now().Add(drainWithin); ; {
		now, err := seen.observer.look(ctx, seen.tally)
		if err != nil {
			return err
		}
		if now.waiting() == 0 {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("after %v %d events are still pending", drainWithin, now.waiting())
		}
		if !sleepUntil(ctx, time.Now().Add(settlePoll)) {
			return ctx.Err()
		}
	}
	_, endpoint, err := seen.observer.system.received(ctx, seen.prefix)
	if err != nil {
		return err
	}
	archived, doubles, err := seen.observer.archived(ctx, seen.prefix)
	if err != nil {
		return err
	}
	want := seen.tally.accepted
	var failures []error
	if once := endpoint.Received - endpoint.Doubles; once < want {
		failures = append(failures, fmt.Errorf("the endpoint has %d events of the %d that were accepted", once, want))
	}
	if archived < want || doubles > 0 {
		failures = append(failures, fmt.Errorf("the archive has %d events of the %d that were accepted, and %d of them twice", archived, want, doubles))
	}
	return errors.Join(failures...)
}
