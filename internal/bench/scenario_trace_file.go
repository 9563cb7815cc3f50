package bench

import (
	"context"
	"time"
)

// traceTail is how long the window of a trace may be open after its last arrival.
const traceTail = time.Minute

// runTraceFile replays a recorded arrival pattern.
func runTraceFile(ctx context.Context, b *Bench) error {
	set := b.config.Settings
	t, err := readTrace(set.Trace)
	if err != nil {
		return err
	}
	speed := 1.0
	if set.Speed != nil {
		speed = *set.Speed
	}
	load := traceLoad(t, speed)
	b.figure(Absolute, "arrivals of the trace", float64(len(t.rows)), "events")
	b.figure(Absolute, "keys of the trace", float64(t.keys), "keys")
	b.figure(Absolute, "rate on average", load.Rate, "events/s")
	peak := float64(t.peak(speed))
	b.figure(Absolute, "most arrivals within a second", peak, "events/s")
	b.figure(Shape, "most arrivals within a second, by the average", peak/load.Rate, "ratio")
	return b.with(ctx, "trace file", nil, func(s *System) error {
		st, err := s.Run(ctx, load)
		if err != nil {
			return err
		}
		b.figure(Shape, "accept p99 by p50: what the peaks cost", st.Accept.P99/max(st.Accept.P50, 0.001), "ratio")
		return nil
	})
}

// traceLoad is a load with the times, keys and sizes of a trace.
func traceLoad(t *trace, speed float64) Load {
	l := standard("trace")
	l.Trace, l.Speed, l.trace = t.name, speed, t
	l.Events, l.Keys, l.Bytes = 1, t.keys, int(t.meanSize())
	seconds := t.length().Seconds() / speed
	l.Rate = float64(len(t.rows)) / max(seconds, 1)
	l.WarmUp, l.For = 0, time.Duration(seconds*float64(time.Second))+traceTail
	return l
}
