package bench

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/waybillhq/waybill/internal/devrun"
)

const (
	// limitFor is how long each limit is measured, on each number of connections.
	limitFor = 2 * time.Second
	// emitterRate is what the best-tuned known emitter accepts of 10 callers, events/s.
	emitterRate = 2680
	// loneRate is how many events a second find an idle system, and loneRows how many single rows
	// are committed as seldom.
	loneRate = 25
	loneRows = 150
	// outageEvents is the backlog of the outage.
	outageEvents = 1_000_000
)

// targetGroups are all targets, in the order in which they are measured: first what wants an
// idle system, last what leaves a backlog.
func targetGroups() []targetGroup {
	return []targetGroup{
		{name: "one of each", targets: slices.Concat(loneTargets(), throughputTargets(), singleTargets(), steadyTargets(), lateTargets())},
		{name: "scale", own: true, targets: []Target{
			{"8-four-forwarders-by-one", false, 3.5, "", Shape, scaleRatio},
		}},
	}
}

// loneTargets are those of an event that finds nothing else to do.
func loneTargets() []Target {
	return []Target{
		{"5-lone-accept-p50-by-commit", true, 2, "", Shape, func(ctx context.Context, m *measured) (float64, error) {
			commit, err := m.commit(ctx)
			if err != nil {
				return 0, err
			}
			st, err := m.open(ctx, loneLoad())
			if st == nil {
				return 0, err
			}
			return st.Accept.P50 / commit, err
		}},
		{"5-lone-to-ingress-p50", true, 5, "ms", Absolute, of(loneLoad, func(st *Stage) float64 { return st.Ingress.P50 })},
		{"5-lone-to-ingress-p99", true, 20, "ms", Absolute, of(loneLoad, func(st *Stage) float64 { return st.Ingress.P99 })},
		// From when the call was due to the endpoint: more than from the commit to the forwarder.
		{"5-lone-propagation-p95-at-most", true, 5, "ms", Absolute, of(loneLoad, func(st *Stage) float64 { return st.EndToEnd.P95 })},
	}
}

func throughputTargets() []Target {
	small, manyKeys, large := fullLoad(256, 200), fullLoad(256, 5000), fullLoad(1<<10, 200)
	return []Target{
		{"1-ingress-256B-by-copy", false, 0.5, "", Shape, byCopy(small, deliveredIngress)},
		{"9-ingest-allocations", true, 5, "/event", Shape, of(func() Load { return small }, func(st *Stage) float64 { return st.Allocations })},
		{"1-ingress-256B-5000-keys-by-copy", false, 0.35, "", Shape, byCopy(manyKeys, deliveredIngress)},
		{"2-both-sinks-1KB-by-copy", false, 0.3, "", Shape, byCopy(large, (*Stage).Slowest)},
	}
}

// singleTargets are those of one event a call.
func singleTargets() []Target {
	unary := singleLoad("single events, 1000 callers", overGRPC, 1000, 8)
	web := singleLoad("single events, HTTP, 100 connections", overHTTP, 100, 100)
	return []Target{
		{"3-unary-1000-callers-by-echo", false, 0.5, "", Shape, byEcho(unary)},
		{"3-stream-8-connections", false, 40_000, "/s", Absolute, of(func() Load {
			return singleLoad("single events, 8 streams", overStream, 1, 8)
		}, acceptedAndDelivered)},
		{"3-http-100-connections-by-handler", false, 0.5, "", Shape, byEcho(web)},
		{"4-ten-callers-one-by-one", false, 3 * emitterRate, "/s", Absolute, of(lonely, func(st *Stage) float64 { return st.AcceptRate })},
	}
}

// steadyTargets are those of rates that are offered whatever becomes of them.
func steadyTargets() []Target {
	var out []Target
	for _, s := range []struct {
		name   string
		rate   float64
		events int
	}{{"10k-by-ten", 10_000, 10}, {"5k-by-one", 5000, 1}} {
		load := func() Load {
			l := standard("open loop, " + s.name)
			l.Bytes, l.Events, l.Rate = 1<<10, s.events, s.rate
			return l
		}
		out = append(out,
			Target{"6-" + s.name + "-accept-p99", true, 25, "ms", Absolute, of(load, func(st *Stage) float64 { return st.Accept.P99 })},
			Target{"6-" + s.name + "-to-ingress-p99", true, 100, "ms", Absolute, of(load, func(st *Stage) float64 { return st.Ingress.P99 })},
			// The part of what was accepted that was not delivered at the end, more than at the beginning.
			Target{"6-" + s.name + "-queue-growth", true, 0.01, "", Shape, of(load, func(st *Stage) float64 {
				return max(0, float64(st.BacklogGrowth[ingressSink])) / float64(st.Accepted)
			})})
	}
	return out
}

// lateTargets come after the highest rates.
func lateTargets() []Target {
	out := []Target{{"7-drain-after-outage-by-target-1", false, 0.8, "", Shape, func(ctx context.Context, m *measured) (float64, error) {
		st, err := m.stage(ctx, fullLoad(256, 200))
		if err != nil {
			return 0, err
		}
		_, drain, err := m.system.outage(ctx, backlog("outage", outageEvents), 0)
		if err != nil {
			return 0, err
		}
		b := m.system.bench
		b.figure(Absolute, "backlog of the outage", float64(drain.Backlog), "events")
		b.figure(Absolute, "drain from when the endpoint is up", drain.Rate(), "events/s")
		b.figure(Absolute, "drain between the first and the last tenth", drain.Pace, "events/s")
		return drain.Rate() / deliveredIngress(st), nil
	}}}
	for _, process := range []string{"ingest-1", "forwarder-1", "janitor-1"} {
		out = append(out, Target{"9-rss-" + process, true, 200, "MiB", Absolute, func(_ context.Context, m *measured) (float64, error) {
			memory, err := m.system.memory()
			return float64(memory[process]) / (1 << 20), err
		}})
	}
	return out
}

func deliveredIngress(st *Stage) float64 { return st.DeliverRate[ingressSink] }

func acceptedAndDelivered(st *Stage) float64 { return min(st.AcceptRate, deliveredIngress(st)) }

// of measures a figure of one stage.
func of(load func() Load, figure func(*Stage) float64) func(context.Context, *measured) (float64, error) {
	return func(ctx context.Context, m *measured) (float64, error) {
		st, err := m.open(ctx, load())
		if st == nil {
			return 0, err
		}
		return figure(st), err
	}
}

// byCopy measures a rate of one stage in relation to COPY of the same rows, which is measured
// right before.
func byCopy(load Load, figure func(*Stage) float64) func(context.Context, *measured) (float64, error) {
	return func(ctx context.Context, m *measured) (float64, error) {
		limit, err := m.value(Absolute, fmt.Sprintf("COPY of rows with %d B of data, %d keys", load.Bytes, load.Keys), "rows/s", func() (float64, error) {
			return m.system.copyRate(ctx, load, limitFor)
		})
		if err != nil {
			return 0, err
		}
		st, err := m.stage(ctx, load)
		if err != nil {
			return 0, err
		}
		return figure(st) / limit, nil
	}
}

// byEcho measures what is accepted and delivered of a load in relation to a bare server that
// gets the same calls, right before.
func byEcho(load Load) func(context.Context, *measured) (float64, error) {
	return func(ctx context.Context, m *measured) (float64, error) {
		bare := load
		bare.WarmUp, bare.For = time.Second, 2*limitFor
		limit, err := m.value(Absolute, "bare server, "+load.Name, "events/s", func() (rate float64, err error) {
			err = m.system.withEcho(ctx, func(e *echoProcess) error {
				rate, err = e.rate(ctx, bare)
				return err
			})
			return rate, err
		})
		if err != nil {
			return 0, err
		}
		st, err := m.stage(ctx, load)
		if err != nil {
			return 0, err
		}
		return acceptedAndDelivered(st) / limit, nil
	}
}

func (m *measured) commit(ctx context.Context) (float64, error) {
	return m.value(Absolute, "commit of one row p50, as seldom as a lone event", "ms", func() (float64, error) {
		h, err := m.system.commitLatency(ctx, loneRows, time.Second/loneRate)
		if err != nil {
			return 0, err
		}
		return quantilesOf(h).P50, nil
	})
}

// loneLoad is an event now and then on an idle system.
func loneLoad() Load {
	l := standard(fmt.Sprintf("lone events, %d/s", loneRate))
	l.Events, l.Rate, l.Connections, l.WarmUp, l.For = 1, loneRate, 1, 2*time.Second, 12*time.Second
	return l
}

// fullLoad is calls of 100 as fast as they are taken.
func fullLoad(bytes, keys int) Load {
	l := standard(fmt.Sprintf("calls of 100, %d B, %d keys", bytes, keys))
	l.Bytes, l.Keys, l.Callers = bytes, keys, 64
	return l
}

// singleLoad is one event a call as fast as they are taken.
func singleLoad(name string, over transport, callers, connections int) Load {
	l := standard(name)
	l.Events, l.Transport, l.Callers, l.Connections = 1, over, callers, connections
	l.WarmUp, l.For = 2*time.Second, 6*time.Second
	return l
}

// scaleRatio is the drain of four forwarders in relation to that of one.
func scaleRatio(ctx context.Context, m *measured) (float64, error) {
	paces := map[int]float64{}
	for _, forwarders := range []int{1, 4} {
		drain, err := m.bench.scale(ctx, forwarders)
		if err != nil {
			return 0, err
		}
		paces[forwarders] = drain.Pace
	}
	return paces[4] / paces[1], nil
}

const (
	// scaleDelay is how long the endpoint takes to answer.
	scaleDelay = 50 * time.Millisecond
	// scaleRequestEvents keeps requests so small that the endpoint bounds one forwarder, and
	// not this machine four: 4 requests in flight of 100 events are 8,000 events/s.
	scaleRequestEvents = 100
	// scaleSeconds is how long one forwarder or four take for their backlog.
	scaleSeconds = 8
)

// scale measures how some forwarders drain a backlog to a slow endpoint.
func (b *Bench) scale(ctx context.Context, forwarders int) (drain Drain, err error) {
	change := func(c *devrun.Config) {
		c.Forwarders = forwarders
		c.Env = append(slices.Clone(c.Env), fmt.Sprintf("WAYBILL_INGRESS_REQUEST_EVENTS=%d", scaleRequestEvents))
	}
	err = b.with(ctx, fmt.Sprintf("%d forwarders", forwarders), change, func(s *System) error {
		load := backlog("backlog for a slow endpoint", int64(forwarders)*scaleSeconds*8000)
		_, drain, err = s.outage(ctx, load, scaleDelay)
		return err
	})
	if err == nil {
		name := fmt.Sprintf("endpoint with %v of delay, %d forwarders", scaleDelay, forwarders)
		b.figure(Absolute, name, drain.Pace, "events/s")
		b.figure(Shape, name+", events of a request", drain.RequestEvents, "events")
	}
	return drain, err
}
