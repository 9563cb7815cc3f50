package bench

import (
	"context"
	"time"
)

// runQuick puts a little of each kind of load on a system.
func runQuick(ctx context.Context, b *Bench) error {
	return b.with(ctx, "quick", nil, func(s *System) error {
		batches := standard("batches, highest rate")
		batches.Callers = 16
		steady := standard("batches of 10, 2000/s")
		steady.Events, steady.Rate = 10, 2000
		single := standard("single events, 100 callers")
		single.Events, single.Callers = 1, 100
		streams := standard("8 streams")
		streams.Events, streams.Callers, streams.Transport = 1, 1, overStream
		web := standard("HTTP, 500/s")
		web.Events, web.Rate, web.Transport = 1, 500, overHTTP
		for _, load := range []Load{steady, batches, single, streams, web} {
			load.WarmUp, load.For = time.Second, 5*time.Second
			if _, err := s.Run(ctx, load); err != nil {
				return err
			}
		}
		return nil
	})
}
