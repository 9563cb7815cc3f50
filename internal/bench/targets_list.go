package bench

import (
	"context"
	"fmt"
	"time"
)

const (
	// limitFor is how long each limit is measured on each number of connections.
	limitFor = 2 * time.Second
	// emitterRate is what the best-tuned known emitter accepts of 10 callers, events/s.
	emitterRate = 2680
)

// targetGroups are all targets, in the order in which they are measured: first what wants an
// idle system.
func targetGroups() []targetGroup {
	return []targetGroup{{name: "one of each", targets: []Target{
		{"5-lone-accept-p50-by-commit", true, 2, "", Shape, func(ctx context.Context, m *measured) (float64, error) {
			st, err := m.stage(ctx, loneLoad())
			if err != nil {
				return 0, err
			}
			commit, err := m.commit(ctx)
			return st.Accept.P50 / commit, err
		}},
		{"5-lone-to-ingress-p50", true, 5, "ms", Absolute, of(loneLoad, func(st *Stage) float64 { return st.Ingress.P50 })},
		{"5-lone-to-ingress-p99", true, 20, "ms", Absolute, of(loneLoad, func(st *Stage) float64 { return st.Ingress.P99 })},
		// From when the call was due to the endpoint: above what the commit to the forwarder takes.
		{"5-lone-propagation-p95-at-most", true, 5, "ms", Absolute, of(loneLoad, func(st *Stage) float64 { return st.EndToEnd.P95 })},
		{"1-ingress-256B-by-copy", false, 0.5, "", Shape, byCopy(func() Load { return fullLoad(256, 200) }, ingressRate)},
		{"1-ingress-256B-5000-keys-by-copy", false, 0.35, "", Shape, byCopy(func() Load { return fullLoad(256, 5000) }, ingressRate)},
		{"2-both-sinks-1KB-by-copy", false, 0.3, "", Shape, byCopy(func() Load { return fullLoad(1<<10, 200) }, (*Stage).Slowest)},
		{"4-ten-callers-one-by-one", false, 3 * emitterRate, "/s", Absolute, of(lonely, func(st *Stage) float64 { return st.AcceptRate })},
	}}}
}

func ingressRate(st *Stage) float64 { return st.DeliverRate[ingressSink] }

// of measures a figure of one stage.
func of(load func() Load, figure func(*Stage) float64) func(context.Context, *measured) (float64, error) {
	return func(ctx context.Context, m *measured) (float64, error) {
		st, err := m.stage(ctx, load())
		if err != nil {
			return 0, err
		}
		return figure(st), nil
	}
}

// byCopy measures a rate of one stage in relation to COPY of the same rows, which is measured
// right before.
func byCopy(load func() Load, figure func(*Stage) float64) func(context.Context, *measured) (float64, error) {
	return func(ctx context.Context, m *measured) (float64, error) {
		limit, err := m.copyRate(ctx, load())
		if err != nil {
			return 0, err
		}
		st, err := m.stage(ctx, load())
		if err != nil {
			return 0, err
		}
		return figure(st) / limit, nil
	}
}

func (m *measured) copyRate(ctx context.Context, load Load) (float64, error) {
	return m.value(Absolute, fmt.Sprintf("COPY of rows with %d B of data, %d keys", load.Bytes, load.Keys), "rows/s", func() (float64, error) {
		return m.system.copyRate(ctx, load, limitFor)
	})
}

func (m *measured) commit(ctx context.Context) (float64, error) {
	return m.value(Absolute, "commit of one row p50", "ms", func() (float64, error) {
		h, err := m.system.commitLatency(ctx, commitRows)
		if err != nil {
			return 0, err
		}
		return quantilesOf(h).P50, nil
	})
}

// loneLoad is an event now and then on an idle system.
func loneLoad() Load {
	l := standard("lone events, 25/s")
	l.Events, l.Rate, l.Connections, l.WarmUp, l.For = 1, 25, 1, 2*time.Second, 12*time.Second
	return l
}

// fullLoad is calls of 100 as fast as they are taken.
func fullLoad(bytes, keys int) Load {
	l := standard(fmt.Sprintf("calls of 100, %d B, %d keys", bytes, keys))
	l.Bytes, l.Keys, l.Callers, l.WarmUp, l.For = bytes, keys, 16, 3*time.Second, 10*time.Second
	return l
}
