package bench

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// runOutage lets a backlog pile up while the endpoint is down, and drains it.
func runOutage(ctx context.Context, b *Bench) error {
	return b.with(ctx, "outage", nil, func(s *System) error {
		load := fullLoad(256, 200)
		load.Name = "no outage"
		st, err := s.Run(ctx, load)
		if err != nil {
			return err
		}
		_, drain, err := s.outage(ctx, backlog("outage", outageEvents), 0)
		if err != nil {
			return err
		}
		b.figure(Absolute, "backlog", float64(drain.Backlog), "events")
		b.figure(Absolute, "drain from when the endpoint is up", drain.Rate(), "events/s")
		b.figure(Absolute, "drain between the first and the last tenth", drain.Pace, "events/s")
		b.figure(Shape, "drain in relation to delivery without an outage", drain.Rate()/deliveredIngress(st), "ratio")
		return nil
	})
}

// runScale drains a backlog to a slow endpoint with 1, 2 and 4 forwarders.
func runScale(ctx context.Context, b *Bench) error {
	var one float64
	for _, forwarders := range []int{1, 2, 4} {
		pace, err := b.scale(ctx, forwarders)
		if err != nil {
			return err
		}
		if forwarders == 1 {
			one = pace
			continue
		}
		b.figure(Shape, fmt.Sprintf("%d forwarders in relation to 1", forwarders), pace/one, "ratio")
	}
	return nil
}

// runSlowSink measures with an endpoint that takes its time.
func runSlowSink(ctx context.Context, b *Bench) error {
	return b.with(ctx, "slow sink", nil, func(s *System) error {
		if s.receiver == nil {
			return errors.New("slow-sink needs the endpoint: give --endpoint-addr")
		}
		defer s.receiver.delay.Store(0)
		for _, delay := range []time.Duration{0, 50 * time.Millisecond, time.Second} {
			s.receiver.delay.Store(int64(delay))
			load := standard(fmt.Sprintf("endpoint answers after %v", delay))
			load.Rate, load.Events, load.For = 2000, 10, 15*time.Second
			if _, err := s.Run(ctx, load); err != nil {
				return err
			}
		}
		return nil
	})
}
