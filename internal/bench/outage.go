package bench

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// drainEdge is the part of a backlog at each end that a drain rate leaves out where the pace
// is measured: until the circuit breaker lets a request through, and when lanes run dry.
const drainEdge = 0.1

// Drain is how the endpoint took a backlog once it was up again.
type Drain struct {
	Backlog int64         // events that waited
	Took    time.Duration // until the last of them arrived
	// Pace is events/s between the first and the last tenth.
	Pace float64
	// RequestEvents is how many events a request had then, on average.
	RequestEvents float64
}

// Rate is events/s from when the endpoint was up again.
func (d Drain) Rate() float64 { return float64(d.Backlog) / d.Took.Seconds() }

// outage puts a load on while the endpoint is down, then lets it answer after delay, and
// measures how it takes the backlog.
func (s *System) outage(ctx context.Context, load Load, delay time.Duration) (*Stage, Drain, error) {
	var d Drain
	s.receiver.down.Store(true)
	defer s.receiver.down.Store(false)
	st, err := s.RunThen(ctx, load, func(ctx context.Context) (err error) {
		d, err = s.takeBacklog(ctx, delay)
		return err
	})
	return st, d, err
}

func (s *System) takeBacklog(ctx context.Context, delay time.Duration) (Drain, error) {
	s.receiver.delay.Store(int64(delay))
	defer s.receiver.delay.Store(0)
	up, before := time.Now(), s.ledger.arrived.Load()
	d := Drain{Backlog: s.ledger.accepted.Load() - before}
	if d.Backlog == 0 {
		return d, errors.New("no backlog: nothing was accepted while the endpoint was down")
	}
	s.receiver.down.Store(false)
	reach := func(share float64) (time.Time, error) {
		want := before + int64(share*float64(d.Backlog))
		for newest, progress := before, time.Now(); ; pause(ctx, time.Millisecond) {
			now := s.ledger.arrived.Load()
			switch {
			case now >= want:
				return time.Now(), nil
			case ctx.Err() != nil:
				return time.Time{}, ctx.Err()
			case now > newest:
				newest, progress = now, time.Now()
			case time.Since(progress) > drainStuck:
				return time.Time{}, fmt.Errorf("the endpoint got %d of %d events of the backlog, and none for %v", now-before, d.Backlog, drainStuck)
			}
		}
	}
	from, err := reach(drainEdge)
	if err != nil {
		return d, err
	}
	requests := s.receiver.taken.Load()
	to, err := reach(1 - drainEdge)
	if err != nil {
		return d, err
	}
	events := (1 - 2*drainEdge) * float64(d.Backlog)
	d.Pace = events / to.Sub(from).Seconds()
	d.RequestEvents = events / float64(max(1, s.receiver.taken.Load()-requests))
	end, err := reach(1)
	d.Took = end.Sub(up)
	return d, err
}

// backlog is a load that leaves n events behind.
func backlog(name string, n int64) Load {
	l := standard(name)
	l.Callers, l.WarmUp, l.Count, l.For = 64, 0, n, 2*time.Minute
	return l
}
