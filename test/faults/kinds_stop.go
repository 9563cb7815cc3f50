package main

import (
	"context"
	"errors"
	"time"

	"github.com/waybillhq/waybill/test/faults/proxy"
)

// stopKinds are processes that are asked to end while a server that they need is away:
// each must end well within its time limit, whatever it was waiting for.
func stopKinds() []*kind {
	down, hole := proxy.Fault{Mode: proxy.Cut}, proxy.Fault{Mode: proxy.BlackHole}
	of := func(who string, targets []string, server, way string, f proxy.Fault, e effect) *kind {
		about := "is away"
		if f.Mode == proxy.BlackHole {
			about = "does not answer"
		}
		return &kind{
			name: "stop-" + who + "-" + server + "-" + way, about: "SIGTERM while " + server + " " + about, targets: targets,
			min: second, max: 3 * second, effect: e,
			parts: func(on string) []string { return []string{on, on + " to " + server} },
			make: func(s *system, on string) fault {
				return &stopCutOff{s: s, on: on, cut: &network{s: s, processes: []string{on}, server: server, fault: f}}
			},
		}
	}
	late, lost := effect{retransmits: true}, effect{doubles: true, retransmits: true, leases: true}
	return []*kind{
		of("ingest", ingests, "postgres", "down", down, late),
		of("ingest", ingests, "postgres", "hole", hole, late),
		of("janitor", janitors, "postgres", "down", down, late),
		of("janitor", janitors, "postgres", "hole", hole, late),
		of("forwarder", forwarders, "s3", "hole", hole, effect{leases: true}),
		of("any", processes, "nats", "down", down, lost),
		of("any", processes, "nats", "hole", hole, lost),
	}
}

// stopCutOff asks a process to end that was cut off from a server, and lets it have the
// server again once it has ended.
type stopCutOff struct {
	s   *system
	on  string
	cut fault
}

// cutOffFor is how long a process goes on with its server away before it is asked to end.
const cutOffFor = 500 * time.Millisecond

func (f *stopCutOff) inject(ctx context.Context) error {
	if err := f.cut.inject(ctx); err != nil {
		return err
	}
	sleep(ctx, cutOffFor)
	return (&terminate{f.s, f.on}).inject(ctx)
}

func (f *stopCutOff) heal(ctx context.Context) error {
	ended := poll(ctx, startLimit, f.on+" ends", func(context.Context) error { return f.s.watch.hasEnded(f.on) })
	if err := errors.Join(ended, f.cut.heal(ctx)); err != nil {
		return err
	}
	return f.s.awaitStart(ctx, f.on)
}
