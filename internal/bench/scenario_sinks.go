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
	paces, predicted := map[int][]float64{}, map[int][]float64{}
	for run := range b.config.Settings.runs() {
		for _, forwarders := range inTurn(counts, run) {
			drain, err := b.scale(ctx, forwarders)
			if err != nil {
				return err
			}
			paces[forwarders] = append(paces[forwarders], drain.Pace)
			predicted[forwarders] = append(predicted[forwarders], drain.Pace/scalePrediction(forwarders, drain.RequestEvents))
		}
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

// inTurn returns what is compared in the order of a run: in every other one in reverse, so that
// what drifts meanwhile favours none.
func inTurn[T any](things []T, run int) []T {
	order := slices.Clone(things)
	if run%2 == 1 {
		slices.Reverse(order)
	}
	return order
}

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
