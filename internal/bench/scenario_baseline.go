package bench

import (
	"context"
	"time"
)

// lonelyEvents is how many events the closed-loop callers send one by one.
const lonelyEvents = 100_000

// runBaseline finds the highest rate of tiny events, and that of few callers.
func runBaseline(ctx context.Context, b *Bench) error {
	return b.with(ctx, "baseline", nil, func(s *System) error {
		tiny := standard("tiny")
		tiny.Bytes, tiny.Callers, tiny.For = 16, 64, 20*time.Second
		if _, err := s.Run(ctx, tiny); err != nil {
			return err
		}
		_, err := s.Run(ctx, lonely())
		return err
	})
}

// lonely is 10 callers that send one event a call.
func lonely() Load {
	l := standard("10 callers, one event a call")
	l.Events, l.Callers, l.Connections = 1, 10, 10
	l.WarmUp, l.For, l.Count = time.Second, 2*time.Minute, lonelyEvents
	return l
}
