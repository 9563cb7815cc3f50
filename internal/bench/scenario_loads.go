package bench

import (
	"context"
	"fmt"
	"time"
)

// payloadSizes are bytes of data of an event.
var payloadSizes = []int{50, 200, 1 << 10, 5 << 10, 20 << 10, 50 << 10}

// runPayload compares events of different sizes, as fast as they are taken, in turn.
func runPayload(ctx context.Context, b *Bench) error {
	return b.with(ctx, "payload", nil, func(s *System) error {
		runs := b.config.Settings.runs()
		stages := map[int][]*Stage{}
		err := compare(runs, payloadSizes, func(bytes, run int) error {
			load := standard(ofRun(fmt.Sprintf("%d B", bytes), run, runs))
			load.Bytes, load.Callers, load.WarmUp, load.For = bytes, 16, time.Second, 4*time.Second
			// A call stays below the limit of a request.
			load.Events = min(100, 2<<20/bytes)
			st, err := s.Run(ctx, load)
			stages[bytes] = append(stages[bytes], st)
			return err
		})
		if err != nil {
			return err
		}
		for _, bytes := range payloadSizes {
			of := stages[bytes]
			name := fmt.Sprintf("%d B: ", bytes)
			b.overRuns(Absolute, name+"delivered to both sinks", valuesOf(of, (*Stage).Slowest), "events/s")
			b.overRuns(Absolute, name+"data delivered to both sinks", valuesOf(of, func(st *Stage) float64 { return st.Slowest() * float64(bytes) / (1 << 20) }), "MiB/s")
			b.overRuns(Absolute, name+"CPU of all processes but this", valuesOf(of, (*Stage).TotalCPU), "µs/event")
			b.overRuns(Shape, name+"WAL", valuesOf(of, func(st *Stage) float64 { return st.WAL }), "bytes/event")
		}
		return nil
	})
}

// rampRates are events/s, each twice the one before it or more.
var rampRates = []float64{100, 500, 1000, 2000, 5000, 10_000, 20_000, 40_000, 80_000, 160_000, 320_000}

const (
	// A rate is kept up with when this share of it is delivered, and no more than this many
	// seconds' worth of it waits.
	keptUpShare   = 0.97
	keptUpSeconds = 1
)

// runRamp raises the rate until the system no longer keeps up, twice in a row: something else that
// the machine does for a moment is no limit of the system.
func runRamp(ctx context.Context, b *Bench) error {
	return b.with(ctx, "ramp", nil, func(s *System) error {
		var knee float64
		for _, rate := range rampRates {
			st, why, err := s.rampStep(ctx, fmt.Sprintf("%.0f/s", rate), rate)
			if err == nil && why != "" {
				b.warn("%.0f/s, once: %s", rate, why)
				st, why, err = s.rampStep(ctx, fmt.Sprintf("%.0f/s again", rate), rate)
			}
			if err != nil {
				return err
			}
			if why != "" {
				b.figure(Absolute, "knee: the highest rate kept up with", knee, "events/s")
				b.warn("%.0f/s is too much: %s; most of the CPU was used by %s", rate, why, busiest(st))
				return nil
			}
			knee = rate
		}
		b.figure(Absolute, "the highest rate of the ramp, kept up with", knee, "events/s")
		return nil
	})
}

// rampStep offers a rate, and says how the system did not keep up; empty: it did.
func (s *System) rampStep(ctx context.Context, name string, rate float64) (*Stage, string, error) {
	load := standard(name)
	load.Rate = rate
	// A call a millisecond, and no larger than it must be for that.
	load.Events = min(max(1, int(rate/1000)), 100)
	load.WarmUp, load.For = 2*time.Second, 8*time.Second
	st, err := s.Run(ctx, load)
	if err != nil {
		return nil, "", err
	}
	return st, fellBehind(st, s.receiver != nil), nil
}

// fellBehind says how a stage did not keep up with its rate; empty: it did. A generator that was
// late for some calls and made them all the same is no reason: it spoils latencies only.
func fellBehind(st *Stage, delivers bool) string {
	why, rate := "", st.Load.Rate
	switch growth := float64(st.BacklogGrowth[ingressSink]); {
	case st.AcceptRate < keptUpShare*rate:
		why = fmt.Sprintf("%.0f/s were accepted", st.AcceptRate)
	case delivers && growth > keptUpSeconds*rate:
		why = fmt.Sprintf("%.0f more events waited for %s at the end of the window than at its beginning", growth, ingressSink)
	}
	if why != "" && st.Saturated != "" {
		why += "; " + st.Saturated
	}
	return why
}

// busiest names the process that used most of the CPU, with its part of one core.
func busiest(st *Stage) string {
	name, most := "nobody", 0.0
	for _, process := range sortedKeys(st.CPU) {
		if st.CPU[process] > most {
			name, most = process, st.CPU[process]
		}
	}
	return fmt.Sprintf("%s (%.1f of %.1f µs/event)", name, most, st.TotalCPU()+st.CPU[self])
}

// runSustained keeps rates up for a while.
func runSustained(ctx context.Context, b *Bench) error {
	return b.with(ctx, "sustained", nil, func(s *System) error {
		for _, rate := range []float64{1000, 10_000, 20_000} {
			load := standard(fmt.Sprintf("%.0f/s", rate))
			load.Rate, load.Events, load.Bytes, load.For = rate, 10, 1<<10, time.Minute
			st, err := s.Run(ctx, load)
			if err != nil {
				return err
			}
			for _, sink := range sortedKeys(st.BacklogGrowth) {
				// As time, so that it can be compared with how long the archive waits for an object
				// to be filled, whatever the length of the window.
				grown := float64(st.BacklogGrowth[sink]) / max(1, st.AcceptRate)
				b.figure(Shape, fmt.Sprintf("%.0f/s: queued up for %s in %.0f s", rate, sink, st.Seconds), grown, "s of what was accepted (flat: less than an object waits)")
			}
		}
		return nil
	})
}

const (
	burstBase   = 1000
	burstFactor = 10
	burstSpikes = 3
)

// runBurst puts spikes on a base load.
func runBurst(ctx context.Context, b *Bench) error {
	return b.with(ctx, "burst", nil, func(s *System) error {
		for i := range burstSpikes {
			for _, part := range []struct {
				name string
				rate float64
				long time.Duration
			}{{"base", burstBase, 8 * time.Second}, {"spike", burstBase * burstFactor, 5 * time.Second}} {
				load := standard(fmt.Sprintf("%s %d", part.name, i+1))
				load.Rate, load.Events, load.For, load.WarmUp = part.rate, 10, part.long, 0
				st, err := s.Run(ctx, load)
				if err != nil {
					return err
				}
				if part.name == "spike" {
					// Less than none where events are delivered before their calls are answered.
					b.figure(Absolute, load.Name+": backlog of ingress at its end", float64(max(0, st.BacklogGrowth[ingressSink])), "events")
					b.figure(Absolute, load.Name+": most messages queued for ingress", float64(st.MaxQueued[ingressSink]), "messages")
					b.figure(Absolute, load.Name+": time to drain, the archive's linger included", st.DrainSeconds, "s")
				}
			}
		}
		return nil
	})
}

// runRealistic sends what a web site sends.
func runRealistic(ctx context.Context, b *Bench) error {
	return b.with(ctx, "realistic", nil, func(s *System) error {
		full, steady := standard("highest rate"), standard("2000/s in calls of 10")
		full.Callers = 16
		steady.Rate, steady.Events = 2000, 10
		for _, load := range []Load{steady, full} {
			load.Mix = true
			if _, err := s.Run(ctx, load); err != nil {
				return err
			}
		}
		return nil
	})
}

// invalidShares are what errors compares.
var invalidShares = []float64{0, 0.1}

// runErrors compares calls with invalid events among them to calls without, in turn.
func runErrors(ctx context.Context, b *Bench) error {
	return b.with(ctx, "errors", nil, func(s *System) error {
		cpu := map[float64][]float64{}
		runs := b.config.Settings.runs()
		err := compare(runs, invalidShares, func(share float64, run int) error {
			load := standard(ofRun(fmt.Sprintf("%.0f %% invalid", 100*share), run, runs))
			load.Callers, load.Invalid, load.WarmUp, load.For = 16, share, time.Second, 4*time.Second
			st, err := s.Run(ctx, load)
			if err != nil {
				return err
			}
			// Over all events that were offered: refusing is work too.
			cpu[share] = append(cpu[share], st.CPU["ingest-1"]*float64(st.Accepted)/float64(max(1, st.Offered)))
			return nil
		})
		if err != nil {
			return err
		}
		without := median(cpu[0])
		for _, share := range invalidShares {
			b.figure(Absolute, fmt.Sprintf("CPU of ingest for an offered event, %.0f %% invalid, median", 100*share), median(cpu[share]), "µs/event")
		}
		b.figure(Shape, "CPU of ingest for an offered event with 10 % invalid, by without", median(cpu[invalidShares[1]])/without, "ratio")
		return nil
	})
}
