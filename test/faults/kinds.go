package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/waybillhq/waybill/test/faults/proxy"
)

// fault breaks something and mends it again.
type fault interface {
	inject(ctx context.Context) error
	// heal is always called after inject, also when that failed. It returns when what was
	// broken is there again, though not necessarily at work.
	heal(ctx context.Context) error
}

// proven is a fault that knows how often it took place, once it was healed.
type proven interface {
	proof() (n int, what string)
}

// witness is a fault that knows more than can be read back of what it destroyed.
type witness interface {
	proven
	testify(e *evidence)
}

// kind is a row of the table of faults.
type kind struct {
	name, about string
	targets     []string
	only        string        // the condition that it needs; empty: any
	min, max    time.Duration // how long it is in force
	make        func(s *system, on string) fault
	parts       func(on string) []string // what nothing else may break meanwhile
	// setup, which may be nil, changes what the system of a run consists of that has it in
	// its schedule.
	setup setup
	// What it may lead to; what no fault of a run explains is a violation.
	effect effect
}

// effect says what a fault may lead to.
type effect struct {
	// doubles: the endpoint may get events twice.
	doubles bool
	// retransmits: batches may fall out of the queue.
	retransmits bool
	// leases: lanes move for another reason than the death of a forwarder, or cannot move.
	leases bool
	// codes of dead letters.
	codes []string
}

var (
	ingests    = []string{"ingest-1", "ingest-2"}
	forwarders = []string{"forwarder-1", "forwarder-2", "forwarder-3"}
	janitors   = []string{"janitor-1", "janitor-2"}
	processes  = slices.Concat(ingests, forwarders, janitors)
	// The emitter is in the harness itself.
	emitters = []string{"emitter"}
)

// users are the processes that connect to a server.
func users(server string) []string {
	switch server {
	case "postgres":
		return slices.Concat(ingests, janitors, emitters)
	case "nats":
		return slices.Concat(processes, emitters)
	default:
		return forwarders
	}
}

func itself(on string) []string { return []string{on} }

func part(names ...string) func(string) []string { return func(string) []string { return names } }

// kinds is the table of all faults.
func kinds() []*kind {
	return slices.Concat(processKinds(), postgresKinds(), natsKinds(), endpointKinds(), networkKinds(),
		streamKinds(), poisonKinds(), clusterKinds(), producerKinds(), stopKinds(), scaleKinds(),
		clockKinds(), storageKinds(), requeueKinds(), crashKinds())
}

// selectKinds returns the named faults, or all.
func selectKinds(names []string) ([]*kind, error) {
	all := kinds()
	if len(names) == 0 {
		return all, nil
	}
	var out []*kind
	for _, name := range names {
		i := slices.IndexFunc(all, func(k *kind) bool { return k.name == name })
		if i < 0 {
			return nil, fmt.Errorf("--fault %q: there is no such fault; --list names them", name)
		}
		out = append(out, all[i])
	}
	return out, nil
}

const second = time.Second

func processKinds() []*kind {
	signal := func(name string, targets []string, e effect) *kind {
		return &kind{
			name: "kill-" + name, about: "kill -9", targets: targets, parts: itself, effect: e,
			make: func(s *system, on string) fault { return &kill{s, on} },
		}
	}
	paused := func(name string, targets []string, min, max time.Duration, e effect) *kind {
		return &kind{
			name: "pause-" + name, about: "SIGSTOP, later SIGCONT", targets: targets, min: min, max: max, parts: itself, effect: e,
			make: func(s *system, on string) fault { return &pause{s: s, on: on} },
		}
	}
	stopped := func(name string, targets []string, e effect) *kind {
		return &kind{
			name: "stop-" + name + "-sink-down", about: "SIGTERM while the endpoint is down", targets: targets,
			min: 2 * second, max: 4 * second, effect: e,
			parts: func(on string) []string { return []string{on, "endpoint"} },
			make: func(s *system, on string) fault {
				return &together{&misbehave{s, `{"down":true}`}, &terminate{s: s, on: on}}
			},
		}
	}
	return []*kind{
		signal("ingest", ingests, effect{retransmits: true}),
		signal("forwarder", forwarders, effect{doubles: true, leases: true}),
		signal("janitor", janitors, effect{retransmits: true}),
		signal("nats", []string{"nats-server"}, effect{doubles: true, retransmits: true, leases: true}),
		signal("endpoint", []string{"endpoint"}, effect{doubles: true}),
		paused("ingest", ingests, 3*second, 8*second, effect{retransmits: true}),
		paused("forwarder", forwarders, 8*second, 11*second, effect{doubles: true, leases: true}),
		paused("janitor", janitors, 4*second, 10*second, effect{retransmits: true}),
		stopped("ingest", ingests, effect{retransmits: true}),
		stopped("forwarder", forwarders, effect{leases: true}),
		stopped("janitor", janitors, effect{retransmits: true}),
		{
			name: "rolling-restart", about: "SIGTERM of every process, one after another", targets: []string{"everything"},
			min: 25 * second, max: 25 * second, effect: effect{leases: true, retransmits: true},
			parts: func(string) []string { return processes },
			make:  func(s *system, _ string) fault { return &rolling{s: s} },
		},
	}
}

func postgresKinds() []*kind {
	of := func(name, about string, min, max time.Duration, e effect, f func(s *system) fault) *kind {
		return &kind{
			name: name, about: about, targets: []string{"postgres"}, min: min, max: max, effect: e, parts: part("postgres"),
			make: func(s *system, _ string) fault { return f(s) },
		}
	}
	late := effect{retransmits: true}
	return []*kind{
		of("postgres-immediate-stop", "SIGQUIT to the postmaster", 0, 0, late, func(s *system) fault { return &kill{s, "postgres"} }),
		of("postgres-kill-backends", "pg_terminate_backend of all", 0, second, late, func(s *system) fault { return &killBackends{s} }),
		of("postgres-hold-transaction", "a transaction held open", 5*second, 15*second, effect{}, func(s *system) fault {
			return &holdTransaction{s: s, begin: `BEGIN ISOLATION LEVEL REPEATABLE READ`, statement: `SELECT count(*) FROM waybill.pipeline`}
		}),
		of("postgres-lock-heads", "a transaction that locks all heads", 2*second, 6*second, effect{}, func(s *system) fault {
			return &holdTransaction{s: s, begin: `BEGIN`, statement: `SELECT FROM waybill.heads ORDER BY page FOR UPDATE`}
		}),
		of("postgres-no-connections", "all connections in use", 2*second, 5*second, late, func(s *system) fault { return &exhaust{s: s} }),
		of("postgres-numbers-back", "setval of the sequence of batch numbers", 0, 0, late, func(s *system) fault { return &setBack{s} }),
	}
}

func natsKinds() []*kind {
	lost := effect{doubles: true, retransmits: true, leases: true}
	of := func(name, about string, targets []string, f func(s *system, on string) fault) *kind {
		return &kind{name: name, about: about, targets: targets, effect: lost, parts: part("nats-server"), make: f}
	}
	stream := func(name, title string) *kind {
		return of(name, "the stream deleted", []string{title}, func(s *system, on string) fault { return &deleteStream{s, on} })
	}
	return []*kind{
		of("wipe-jetstream", "the whole store deleted", []string{"nats-server"}, func(s *system, _ string) fault { return &wipe{s} }),
		stream("delete-events-stream", "EVENTS"),
		stream("delete-receipts-stream", "RECEIPTS"),
		of("delete-consumers", "the consumers of a sink deleted", []string{"ingress", "archive"}, func(s *system, on string) fault { return &deleteConsumers{s, on} }),
		of("delete-buckets", "leases, heartbeats and cursors deleted", []string{"all buckets"}, func(s *system, _ string) fault { return &deleteBuckets{s} }),
	}
}

func endpointKinds() []*kind {
	of := func(name, behaviour string, e effect) *kind {
		return &kind{
			name: "endpoint-" + name, about: "the endpoint is told " + behaviour, targets: []string{"endpoint"},
			min: 2 * second, max: 8 * second, effect: e, parts: part("endpoint"),
			make: func(s *system, _ string) fault { return &misbehave{s, behaviour} },
		}
	}
	flapping := of("flapping", `{"down":true} now and then`, effect{})
	flapping.make = func(s *system, _ string) fault { return flapEndpoint(s) }
	return []*kind{
		of("down", `{"down":true}`, effect{}),
		of("slow", `{"delay_ms":1000}`, effect{}),
		of("overload", `{"overload":true}`, effect{}),
		of("refuse", `{"refuse_type":"type3$"}`, effect{codes: []string{"VALIDATION_FAILED"}}),
		of("poison", `{"poison_type":"type2$"}`, effect{codes: []string{"INVALID_ARGUMENT"}}),
		of("lost-responses", `{"fail_every":3}`, effect{doubles: true}),
		flapping,
	}
}

// networkKinds are each way of breaking a connection, to each server, between any two
// parts; and the S3 server away from all.
func networkKinds() []*kind {
	var out []*kind
	for _, server := range []string{"postgres", "nats", "endpoint", "s3"} {
		for _, way := range networkWays() {
			e := effect{doubles: way.loses && server != "postgres" && server != "s3", retransmits: server == "nats" || server == "postgres", leases: server == "nats"}
			out = append(out, networkKind(server, way.name, way.about, users(server), way.fault, e))
		}
	}
	all := networkKind("s3", "down", "the S3 server away from all", []string{"all"}, proxy.Fault{Mode: proxy.Cut}, effect{})
	all.parts = part(s3Ways()...)
	return append(out, all)
}

// networkWay is a way of breaking connections.
type networkWay struct {
	name, about string
	fault       proxy.Fault
	loses       bool // responses
}

func networkWays() []networkWay {
	return []networkWay{
		{"cut", "connections cut and refused", proxy.Fault{Mode: proxy.Cut}, true},
		{"slow", "everything 50 ms late", proxy.Fault{Mode: proxy.Slow, Delay: 50 * time.Millisecond}, false},
		{"hole", "connections taken and nothing forwarded", proxy.Fault{Mode: proxy.BlackHole}, true},
		{"reset", "responses cut off in the middle", proxy.Fault{Mode: proxy.ResetResponse, Every: 5}, true},
		{"lose", "requests done and their responses lost", proxy.Fault{Mode: proxy.LoseResponse, Every: 5}, true},
	}
}

func networkKind(server, name, about string, from []string, f proxy.Fault, e effect) *kind {
	return &kind{
		name: "net-" + server + "-" + name, about: "network to " + server + ": " + about, targets: from,
		min: 2 * second, max: 8 * second, effect: e,
		parts: func(on string) []string { return []string{on + " to " + server} },
		make: func(s *system, on string) fault {
			targets := []string{on}
			if on == "all" {
				targets = users(server)
			}
			return &network{s: s, processes: targets, server: server, fault: f}
		},
	}
}

// kindOf is the process's kind: the name without its number.
func kindOf(process string) string {
	name, _, _ := strings.Cut(process, "-")
	return name
}

// endSignal is how a part is ended from outside.
func endSignal(name string) syscall.Signal {
	if name == "postgres" {
		return syscall.SIGQUIT // an immediate shutdown, as a crash of the whole server
	}
	return syscall.SIGKILL
}
