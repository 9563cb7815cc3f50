package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/waybillhq/waybill/pipeline"
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

// runScale drains a backlog to a slow endpoint with 1, 2 and 4 forwarders, in turn.
func runScale(ctx context.Context, b *Bench) error {
	counts := []int{1, 2, 4}
	paces := map[int][]float64{}
	for run := range b.config.Settings.runs() {
		if run%2 == 1 {
			slices.Reverse(counts) // what drifts meanwhile favours none
		}
		for _, forwarders := range counts {
			pace, err := b.scale(ctx, forwarders)
			if err != nil {
				return err
			}
			paces[forwarders] = append(paces[forwarders], pace)
		}
	}
	one := median(paces[1])
	for _, forwarders := range sortedKeys(paces) {
		pace := median(paces[forwarders])
		b.figure(Absolute, fmt.Sprintf("%d forwarders, median", forwarders), pace, "events/s")
		b.figure(Shape, fmt.Sprintf("%d forwarders in relation to 1", forwarders), pace/one, "ratio")
		b.figure(Shape, fmt.Sprintf("%d forwarders in relation to what docs/scaling.md predicts", forwarders), pace/scalePrediction(forwarders), "ratio")
	}
	return nil
}

// scalePrediction is the model of docs/scaling.md where the endpoint's delay is the first limit:
// requests in flight times events of a request, by the time that one takes, events/s.
func scalePrediction(forwarders int) float64 {
	inFlight := pipeline.DefaultForwarderConfig().InFlight
	took := scaleDelay + scaleRequestEvents*forwarderPerEvent
	return float64(forwarders*inFlight*scaleRequestEvents) / took.Seconds()
}

// forwarderPerEvent is what a forwarder itself takes of an event (docs/scaling.md).
const forwarderPerEvent = 5 * time.Microsecond

// median of values, of which there must be some.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
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
