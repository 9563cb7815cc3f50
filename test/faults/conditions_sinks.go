package main

import (
	"context"
	"time"

	"github.com/waybillhq/waybill/internal/devrun"
	"github.com/waybillhq/waybill/test/faults/proxy"
)

const (
	// shortGrace is the grace period where a run stands for something far longer than the
	// grace period. Half of it is what ingest has to publish, so it is not shorter.
	shortGrace = 3 * time.Second
	// longLoad is how long such a run has load at least.
	longLoad = 30 * time.Second
)

// short gives the pipeline a short grace period.
func short(c *devrun.Config, _ *system) error {
	c.Grace = shortGrace
	return nil
}

// s3Off is a way of breaking the connections of all forwarders to the S3 server.
func s3Off(f proxy.Fault) func(s *system) fault {
	return func(s *system) fault { return &network{s: s, processes: users("s3"), server: "s3", fault: f} }
}

// badSinkConditions are sinks that work badly from the beginning of the load to its end.
func badSinkConditions() []*condition {
	endpoint := func(name, about, behaviour string) *condition {
		return &condition{
			name: "endpoint-" + name, about: about, parts: []string{"endpoint"},
			standing: func(s *system) fault { return &misbehave{s, behaviour} },
		}
	}
	s3 := func(name, about string, standing func(s *system) fault) *condition {
		return &condition{name: "s3-" + name, about: about, parts: s3Ways(), standing: standing}
	}
	flapping := endpoint("flapping", "the endpoint comes and goes all the time", "")
	flapping.standing = func(s *system) fault { return flapEndpoint(s) }
	return []*condition{
		endpoint("slow", "each call of the endpoint takes 1 s", `{"delay_ms":1000}`),
		endpoint("overload", "the endpoint is overloaded until the load has ended", `{"overload":true}`),
		flapping,
		s3("slow", "each answer of the S3 server comes 1 s late", s3Off(proxy.Fault{Mode: proxy.SlowResponse, Delay: time.Second})),
		s3("flapping", "the S3 server comes and goes all the time", flapS3),
		{
			name: "both-sinks-down", about: "both sinks are away until the load has ended", parts: append(s3Ways(), "endpoint"),
			standing: func(s *system) fault {
				return &together{&misbehave{s, `{"down":true}`}, s3Off(proxy.Fault{Mode: proxy.Cut})(s)}
			},
		},
	}
}

// flapS3 lets the S3 server come and go for all.
func flapS3(s *system) fault {
	cut := &network{s: s, processes: users("s3"), server: "s3", fault: proxy.Fault{Mode: proxy.Cut}}
	return &flap{set: func(ctx context.Context, down bool) error {
		if down {
			return cut.inject(ctx)
		}
		return cut.heal(ctx)
	}}
}

// longConditions stand for ten minutes without something: many grace periods of load in
// which nothing may be retransmitted, nor afterwards.
func longConditions() []*condition {
	long := func(name, about string, parts []string, standing func(s *system) fault) *condition {
		return &condition{
			name: name, about: about + ", for ten grace periods and more", parts: parts,
			setup: short, standing: standing, quiet: true, atLeast: longLoad,
			// A flush waits longer for a head than half of so short a grace period, and its
			// batches are then left to the janitor.
			excludes: func(k *kind) bool { return k.name == "postgres-lock-heads" },
		}
	}
	return []*condition{
		long("no-janitor", "no janitor works", janitors, func(s *system) fault { return &pauseAll{s: s, names: janitors} }),
		long("endpoint-down-long", "the endpoint is down", []string{"endpoint"}, func(s *system) fault { return &misbehave{s, `{"down":true}`} }),
		long("s3-down-long", "the S3 server is away from all", s3Ways(), s3Off(proxy.Fault{Mode: proxy.Cut})),
	}
}
