package bench

import (
	"context"
	"fmt"
	"time"

	"github.com/waybillhq/waybill/pipeline"
)

// runOutage delivers as fast as it goes, and lets a backlog pile up while the endpoint is down and drains
// it, in turn.
func runOutage(ctx context.Context, b *Bench) error {
	return b.with(ctx, "outage", nil, func(s *System) error {
		runs := b.config.Settings.runs()
		rates := make([]float64, runs) // without an outage
		drains := make([]Drain, runs)
		err := compare(runs, []bool{false, true}, func(down bool, run int) (err error) {
			if down {
				_, drains[run], err = s.outage(ctx, backlog(ofRun("outage", run, runs), outageEvents), 0)
				return err
			}
			load := fullLoad(256, 200)
			load.Name = ofRun("no outage", run, runs)
			st, err := s.Run(ctx, load)
			if err == nil {
				rates[run] = deliveredIngress(st)
			}
			return err
		})
		if err != nil {
			return err
		}
		ratios := make([]float64, runs)
		for run := range runs {
			ratios[run] = drains[run].Rate() / rates[run]
		}
		b.figure(Absolute, "backlog", float64(drains[0].Backlog), "events")
		b.overRuns(Absolute, "delivered without an outage", rates, "events/s")
		b.overRuns(Absolute, "drain from when the endpoint is up", valuesOf(drains, Drain.Rate), "events/s")
		b.overRuns(Absolute, "drain between the first and the last tenth", valuesOf(drains, func(d Drain) float64 { return d.Pace }), "events/s")
		b.overRuns(Shape, "drain in relation to delivery without an outage", ratios, "ratio")
		return nil
	})
}

// runScale drains a backlog to a slow endpoint with 1, 2 and 4 forwarders, in turn.
func runScale(ctx context.Context, b *Bench) error {
	counts := []int{1, 2, 4}
	paces, predicted := map[int][]float64{}, map[int][]float64{}
	err := compare(b.config.Settings.runs(), counts, func(forwarders, _ int) error {
		drain, err := b.scale(ctx, forwarders)
		if err != nil {
			return err
		}
		paces[forwarders] = append(paces[forwarders], drain.Pace)
		predicted[forwarders] = append(predicted[forwarders], drain.Pace/scalePrediction(forwarders, drain.RequestEvents))
		return nil
	})
	if err != nil {
		return err
	}
	one := median(paces[1])
	for _, forwarders := range sortedKeys(paces) {
		pace := median(paces[forwarders])
		b.figure(Absolute, fmt.Sprintf("%d forwarders, median", forwarders), pace, "events/s")
		b.figure(Shape, fmt.Sprintf("%d forwarders in relation to 1", forwarders), pace/one, "ratio")
		b.figure(Shape, fmt.Sprintf("%d forwarders in relation to what docs/scaling.md predicts", forwarders), median(predicted[forwarders]), "ratio")
	}
	return nil
}

// scalePrediction is the model of docs/scaling.md where the endpoint's delay is the first limit:
// requests in flight times events of a request, by the time that one takes, events/s. A request has
// fewer events than it may where a batch is split into several, whose last one is not full.
func scalePrediction(forwarders int, requestEvents float64) float64 {
	inFlight := float64(forwarders * pipeline.DefaultForwarderConfig().InFlight)
	return inFlight * requestEvents / (scaleDelay.Seconds() + requestEvents*forwarderPerEvent.Seconds())
}

// forwarderPerEvent is what a forwarder itself takes of an event (docs/scaling.md).
const forwarderPerEvent = 5 * time.Microsecond

// slowSinkDelays are after how long the endpoint of slow-sink answers.
var slowSinkDelays = []time.Duration{0, 50 * time.Millisecond, time.Second}

// runSlowSink compares endpoints that take their time with one that does not, in turn.
func runSlowSink(ctx context.Context, b *Bench) error {
	return b.with(ctx, "slow sink", nil, func(s *System) error {
		defer s.receiver.delay.Store(0)
		runs := b.config.Settings.runs()
		stages := map[time.Duration][]*Stage{}
		err := compare(runs, slowSinkDelays, func(delay time.Duration, run int) error {
			s.receiver.delay.Store(int64(delay))
			load := standard(ofRun(slowSinkName(delay), run, runs))
			load.Rate, load.Events, load.WarmUp = 2000, 10, 5*time.Second // which is more than a lane's turn takes
			st, err := s.Run(ctx, load)
			stages[delay] = append(stages[delay], st)
			return err
		})
		if err != nil {
			return err
		}
		for _, delay := range slowSinkDelays {
			for _, f := range []struct {
				what, unit string
				of         func(*Stage) float64
			}{
				{"accept p50", "ms", func(st *Stage) float64 { return st.Accept.P50 }},
				{"accept p99", "ms", func(st *Stage) float64 { return st.Accept.P99 }},
				{"accepted → ingress p50", "ms", func(st *Stage) float64 { return st.Ingress.P50 }},
				{"accepted → ingress p99", "ms", func(st *Stage) float64 { return st.Ingress.P99 }},
				{"the archive took", "events/s", func(st *Stage) float64 { return st.DeliverRate[archiveSink] }},
			} {
				b.overRuns(Absolute, slowSinkName(delay)+": "+f.what, valuesOf(stages[delay], f.of), f.unit)
			}
		}
		return nil
	})
}

func slowSinkName(delay time.Duration) string {
	return fmt.Sprintf("endpoint answers after %v", delay)
}
