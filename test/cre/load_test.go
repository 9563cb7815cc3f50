package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestSearch(t *testing.T) {
	l := load{workflows: 20, first: time.Second, last: time.Millisecond}
	for _, limit := range []time.Duration{time.Second, 130 * time.Millisecond, 7 * time.Millisecond, 1500 * time.Microsecond, time.Millisecond} {
		steps, err := l.search(t.Context(), func(_ context.Context, interval time.Duration) (step, error) {
			s := step{interval: interval}
			if interval < limit {
				s.faults = []string{"too short"}
			}
			return s, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		best, found := highest(steps)
		if !found || best.interval < limit || float64(best.interval) > 1.1*float64(limit) {
			t.Errorf("the limit is %v, and %v is found in %v", limit, best.interval, intervals(steps))
		}
	}
}

func TestSearchThatFindsNothing(t *testing.T) {
	l := load{workflows: 20, first: time.Second, last: time.Millisecond}
	steps, err := l.search(t.Context(), func(_ context.Context, interval time.Duration) (step, error) {
		return step{interval: interval, faults: []string{"too short"}}, nil
	})
	if _, found := highest(steps); err != nil || found || len(steps) != 1 {
		t.Errorf("%v, %v", intervals(steps), err)
	}
	broken := errors.New("broken")
	if _, err := l.search(t.Context(), func(context.Context, time.Duration) (step, error) { return step{}, broken }); !errors.Is(err, broken) {
		t.Error(err)
	}
}

func intervals(steps []step) []time.Duration {
	var out []time.Duration
	for _, s := range steps {
		out = append(out, s.interval)
	}
	return out
}

func TestJudgeStep(t *testing.T) {
	const rate = 20
	l := load{workflows: rate, length: 30 * time.Second, sample: 5 * time.Second, jitter: archiveLinger}
	all := func(accepted int64) *tally {
		tally := newTally()
		tally.emitted, tally.accepted = accepted, accepted
		return tally
	}
	if s := l.judge(time.Second, healthy(rate, 6), all(600)); !s.keptUp() || s.offered != rate || s.settled != rate || s.accepted != rate || s.delivered != rate {
		t.Errorf("%v %v", s, s.faults)
	}
	half := func(change func(*sample)) func() (step, []string) {
		return func() (step, []string) {
			samples := healthy(rate, 6)
			for i := range samples {
				change(&samples[i])
			}
			s := l.judge(time.Second, samples, all(600))
			return s, s.faults
		}
	}
	for want, measure := range map[string]func() (step, []string){
		"50% of what is offered is accepted":      half(func(s *sample) { s.accepted /= 2 }),
		"50% of what is offered is delivered":     half(func(s *sample) { s.received /= 2 }),
		"50% of what is offered is settled":       half(func(s *sample) { s.pending["archive"] = s.accepted / 2 }),
		"61 events are pending at the end":        half(func(s *sample) { s.pending["ingress"] = 61 }),
		"no row was deleted from batches from 0s": half(func(s *sample) { s.batches.deleted = 0 }),
		"599 of 600 events were accepted": func() (step, []string) {
			tally := all(600)
			tally.accepted--
			s := l.judge(time.Second, healthy(rate, 6), tally)
			return s, s.faults
		},
	} {
		s, faults := measure()
		if s.keptUp() || !slices.ContainsFunc(faults, func(f string) bool { return strings.Contains(f, want) }) {
			t.Errorf("%q is missing in %q", want, faults)
		}
		if !strings.Contains(s.String(), "NOT kept up") {
			t.Error(s)
		}
	}
}
