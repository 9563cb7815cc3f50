package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/waybillhq/waybill/pipeline"
)

// scaleKinds change how many processes there are.
func scaleKinds() []*kind {
	return []*kind{{
		name: "scale-out", about: "all forwarders but one stopped, and started again under load", targets: []string{"forwarders"},
		// Long enough for the others to end, so that no other fault comes on top.
		min: 4 * second, max: 6 * second, effect: effect{leases: true},
		parts: func(string) []string { return forwarders },
		make:  func(s *system, _ string) fault { return &scaleOut{s: s} },
	}}
}

// scaleOut leaves one forwarder and, once that has all lanes, adds the others, and times
// how long it takes until all have their share.
type scaleOut struct{ s *system }

func (f *scaleOut) inject(ctx context.Context) error {
	added := forwarders[1:]
	for _, name := range added {
		if err := f.s.awaitStart(ctx, name); err != nil { // after an earlier fault
			return err
		}
		f.s.stack.Hold(name)
		if err := (&terminate{f.s, name}).inject(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (f *scaleOut) heal(ctx context.Context) error {
	alone := f.awaitAlone(ctx)
	began := time.Now()
	for _, name := range forwarders[1:] {
		f.s.stack.Release(name)
	}
	if alone != nil {
		return alone
	}
	if err := f.awaitSpread(ctx, forwarders); err != nil {
		return err
	}
	f.s.watch.balanced(len(forwarders), began)
	return nil
}

// awaitAlone waits until one forwarder is left, with all lanes.
func (f *scaleOut) awaitAlone(ctx context.Context) error {
	for _, name := range forwarders[1:] {
		if err := poll(ctx, startLimit, name+" ends", func(context.Context) error { return f.s.watch.hasEnded(name) }); err != nil {
			return err
		}
	}
	return f.awaitSpread(ctx, forwarders[:1])
}

// awaitSpread waits until just the named forwarders have all lanes of all sinks, each no
// more than its share of any sink's.
func (f *scaleOut) awaitSpread(ctx context.Context, over []string) error {
	return poll(ctx, startLimit, fmt.Sprintf("the lanes are spread over %s", strings.Join(over, ", ")), func(ctx context.Context) error {
		holders, err := pipeline.LaneHolders(ctx, f.s.queue)
		if err != nil {
			return err
		}
		return spread(holders, pipeline.DefaultLanes, over)
	})
}

// spread is nil if the forwarders have all lanes of each sink, and each ⌈lanes/forwarders⌉
// at most.
func spread(holders map[pipeline.SinkLane]pipeline.LeaseHolder, lanes int, over []string) error {
	share := (lanes + len(over) - 1) / len(over)
	for _, sink := range []string{ingressSink, archiveSink} {
		held, all := map[string]int{}, 0
		for place, holder := range holders {
			if place.Sink == sink {
				held[holder.Forwarder]++
			}
		}
		for _, name := range over {
			if held[name] > share {
				return fmt.Errorf("%s has %d lanes of %s; its share is %d", name, held[name], sink, share)
			}
			all += held[name]
		}
		if all != lanes {
			return fmt.Errorf("they have %d lanes of %s, of %d", all, sink, lanes)
		}
	}
	return nil
}
