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
	// settleWithin bounds the wait for the last events, and for Postgres's counts of them,
	// which an idle process reports after ten seconds.
	settleWithin = time.Minute
	settlePoll   = 200 * time.Millisecond
)

// phase is a number of workflows that emit for some time.
type phase struct {
	workflows        int
	interval, length time.Duration
	sample           time.Duration // pause between two looks
}

func (p phase) validate() error {
	switch {
	case p.workflows < 1:
		return fmt.Errorf("workflows: %d; want at least 1", p.workflows)
	case p.interval <= 0 || p.sample <= 0:
		return errors.New("intervals: want positive durations")
	case p.sample < 3*p.interval || p.sample < leastSample:
		return fmt.Errorf("sample: %v; want at least %v, and three times the %v of the workflows, so that something happens in each interval",
			p.sample, leastSample, p.interval)
	case p.length < 4*p.sample:
		return fmt.Errorf("for: %v; want at least four times the %v between looks", p.length, p.sample)
	}
	return nil
}

// leastSample is above the time after which Postgres's processes report what they did.
const leastSample = 3 * time.Second

// rate is how many events a second are emitted.
func (p phase) rate() float64 { return float64(p.workflows) / p.interval.Seconds() }

func (p phase) name() string {
	noun := "workflows"
	if p.workflows == 1 {
		noun = "workflow"
	}
	return fmt.Sprintf("%d %s, an event every %v", p.workflows, noun, p.interval)
}

// run emits, looks, and judges what it saw.
func (p phase) run(ctx context.Context, s *system, w io.Writer) error {
	log := newLog(w)
	log.say("%s, for %v", p.name(), p.length)
	seen, err := p.watch(ctx, s, log)
	if err != nil {
		return err
	}
	failure := errors.Join(p.punctual(seen.tally), seen.tally.problem(), judge(seen.samples, p.rate()), seen.settle(ctx, log))
	if failure != nil {
		log.say("FAILED: %v", failure)
		return fmt.Errorf("%s: %w", p.name(), failure)
	}
	log.say("ok: the deletes kept up, nothing is left over, and both sinks have all %d events once", seen.tally.emitted)
	return nil
}

// punctual says that workflows were too late for some of their times.
func (p phase) punctual(t *tally) error {
	if want := int64(p.workflows) * ticks(p.length, p.interval); t.emitted != want {
		return fmt.Errorf("%d events were emitted of the %d that were due; the latest was %v late", t.emitted, want, t.latest)
	}
	return nil
}

// watched is what was seen of a phase.
type watched struct {
	prefix   string // of the sources
	observer *observer
	tally    *tally
	samples  []sample
	rate     float64
}

// watch emits and looks until the time is over and every event was answered.
func (p phase) watch(ctx context.Context, s *system, log *logger) (*watched, error) {
	run := strconv.FormatInt(time.Now().UnixMilli(), 36)
	o, err := observe(ctx, s)
	if err != nil {
		return nil, err
	}
	seen := &watched{prefix: sourceOf(run), observer: o, tally: newTally(), rate: p.rate()}
	emitting, end := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer end() // after an error nobody looks any more
	for _, flow := range workflows(run, p.workflows, p.interval, s.senders) {
		running.Go(func() { flow.run(emitting, o.began, o.began.Add(p.length), seen.tally) })
	}
	for n := 1; time.Duration(n)*p.sample <= p.length; n++ {
		if !sleepUntil(ctx, o.began.Add(time.Duration(n)*p.sample)) {
			return nil, ctx.Err()
		}
		now, err := o.look(ctx, seen.tally)
		if err != nil {
			return nil, err
		}
		log.sample(now, seen.last())
		seen.samples = append(seen.samples, now)
	}
	running.Wait()
	return seen, ctx.Err()
}

// last is the newest sample, or one of the beginning.
func (seen *watched) last() sample {
	if len(seen.samples) == 0 {
		return sample{}
	}
	return seen.samples[len(seen.samples)-1]
}

// settle waits until nothing is pending and Postgres has counted everything, and compares both
// sinks and the tables with what was accepted.
func (seen *watched) settle(ctx context.Context, log *logger) error {
	want := seen.tally.accepted
	var now sample
	for deadline := time.Now().Add(settleWithin); ; {
		var err error
		if now, err = seen.observer.look(ctx, seen.tally); err != nil {
			return err
		}
		// Each of ingest's sessions tells of its own inserts.
		if now.waiting() == 0 && now.events.inserted >= want && now.events.deleted >= want && now.batches.deleted >= now.batches.inserted {
			break
		}
		if time.Now().After(deadline) || !sleepUntil(ctx, time.Now().Add(settlePoll)) {
			break // compare says what is wrong
		}
	}
	log.sample(now, seen.last())
	return seen.compare(ctx, log, now)
}

// compare holds the end against what was accepted.
func (seen *watched) compare(ctx context.Context, log *logger, now sample) error {
	want := seen.tally.accepted
	events, batches, letters, err := seen.observer.system.rows(ctx)
	if err != nil {
		return err
	}
	_, endpoint, err := seen.observer.system.received(ctx, seen.prefix)
	if err != nil {
		return err
	}
	archived, doubles, err := seen.observer.archived(ctx, seen.prefix)
	if err != nil {
		return err
	}
	log.say("emitted %d; endpoint %d, archive %d; left in the tables: %d events, %d batches, %d dead letters", seen.tally.emitted,
		endpoint.Received, archived, events, batches, letters)
	var failures []error
	for _, count := range []struct {
		what      string
		got, want int64
	}{
		{"events pending", now.waiting(), 0},
		{"rows inserted into events", now.events.inserted, want},
		{"rows deleted from events", now.events.deleted, want},
		{"rows deleted from batches", now.batches.deleted, now.batches.inserted},
		{"rows left in events", events, 0},
		{"rows left in batches", batches, 0},
		{"dead letters", letters, 0},
		{"events that the endpoint has", endpoint.Received, want},
		{"events that the endpoint has twice", endpoint.Doubles, 0},
		{"events that came to the endpoint out of order", endpoint.Inversions, 0},
		{"sum of the highest seqnums", endpoint.HighestSeqnum, want},
		{"events that the archive has", archived, want},
		{"events that the archive has twice", doubles, 0},
	} {
		if count.got != count.want {
			failures = append(failures, fmt.Errorf("%s: %d; want %d", count.what, count.got, count.want))
		}
	}
	return errors.Join(failures...)
}
