package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/waybillhq/waybill/test/faults/proxy"
)

// condition is what a whole run takes place under: how the system is set up, and what is
// broken from before the load until after it. Faults come on top.
type condition struct {
	name, about string
	// setup changes what the system consists of, before any of it is started. It may be nil.
	setup setup
	// standing is injected before the load begins and healed when it has ended; it may be
	// nil. What it breaks nothing else may break.
	standing func(s *system) fault
	// loadBytes bounds the data of an event; 0: as in every run.
	loadBytes int
	parts     []string
	effect    effect
	// excludes, which may be nil, names the faults that cannot take place under it.
	excludes func(k *kind) bool
	// quiet: nothing may be retransmitted, and no fault that may lead to it takes place.
	quiet bool
	// atLeast is how long the load lasts under it at least.
	atLeast time.Duration
	// judge, which may be nil, looks for what else must hold.
	judge func(t *trial, r *result, e *evidence)
}

// noCondition is the name of none.
const noCondition = "none"

// conditions is the table of all.
func conditions() []*condition {
	return slices.Concat(
		[]*condition{{name: noCondition, about: "nothing but the schedule's faults"}},
		sinkConditions(),
		natsConditions(),
		clockConditions(),
		badSinkConditions(),
		longConditions(),
		storageConditions(),
	)
}

// conditionOf is the condition of a run: the named one, or the seed's. Every other seed has
// none; the others go through the table, so that any 2 × (len(conditions()) − 1) successive
// ones meet each.
func (s settings) conditionOf(seed uint64) (*condition, error) {
	all := conditions()
	switch {
	case s.condition != "":
		i := slices.IndexFunc(all, func(c *condition) bool { return c.name == s.condition })
		if i < 0 {
			return nil, fmt.Errorf("--condition %q: there is no such condition; --list names them", s.condition)
		}
		return all[i], nil
	case len(s.faults) > 0 || seed%2 == 0:
		return all[0], nil
	default:
		return all[1+seed/2%uint64(len(all)-1)], nil
	}
}

// allows returns the kinds of faults that can take place under a condition.
func (c *condition) allows(kinds []*kind) []*kind {
	return slices.DeleteFunc(slices.Clone(kinds), func(k *kind) bool {
		if k.only != "" && k.only != c.name || c.excludes != nil && c.excludes(k) || c.quiet && k.effect.retransmits {
			return true
		}
		return slices.ContainsFunc(k.targets, func(on string) bool {
			return slices.ContainsFunc(k.parts(on), func(part string) bool { return slices.Contains(c.parts, part) })
		})
	})
}

// begin breaks what is broken for the whole run. The returned function mends it.
func (c *condition) begin(ctx context.Context, s *system) (end func(context.Context) error, err error) {
	if c.standing == nil {
		return func(context.Context) error { return nil }, nil
	}
	f := c.standing(s)
	if err := f.inject(ctx); err != nil {
		return f.heal, fmt.Errorf("condition %s: %w", c.name, err)
	}
	return f.heal, nil
}

// s3Ways are the connections to the S3 server, as parts of faults.
func s3Ways() []string {
	var names []string
	for _, p := range users("s3") {
		names = append(names, p+" to s3")
	}
	return names
}

// sinkConditions are sinks that are away from the beginning of the load to its end.
func sinkConditions() []*condition {
	return []*condition{
		{
			name: "endpoint-down", about: "the endpoint is down until the load has ended", parts: []string{"endpoint"},
			standing: func(s *system) fault { return &misbehave{s, `{"down":true}`} },
		},
		{
			name: "s3-down", about: "the S3 server is away from all until the load has ended", parts: s3Ways(),
			standing: func(s *system) fault {
				return &network{s: s, processes: users("s3"), server: "s3", fault: proxy.Fault{Mode: proxy.Cut}}
			},
		},
	}
}
