package main

import (
	"slices"

	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/test/faults/proxy"
)

// clusterCondition is the condition that faults of a cluster need.
const clusterCondition = "nats-cluster"

var natsServers = []string{"nats-1", "nats-2", "nats-3"}

// clusterKinds take servers out of a cluster of three. One at a time: of two nothing is left.
func clusterKinds() []*kind {
	lost := effect{doubles: true, retransmits: true, leases: true}
	of := func(k *kind) *kind {
		k.only, k.effect, k.parts = clusterCondition, lost, part("nats-server")
		return k
	}
	cut := func(name, about string, clients bool, f proxy.Fault) *kind {
		return of(&kind{
			name: name, about: about, targets: natsServers, min: 6 * second, max: 10 * second,
			make: func(s *system, on string) fault { return &cutNode{s: s, on: on, clients: clients, fault: f} },
		})
	}
	return []*kind{
		of(&kind{
			name: "cluster-kill-leader", about: "kill -9 of the server that leads",
			targets: []string{pipeline.EventsStream, pipeline.ReceiptsStream, consumerGroup, metaGroup},
			make:    func(s *system, on string) fault { return &killLeader{s: s, on: on} },
		}),
		cut("cluster-cut-node", "a server cut off from the others and from its clients", true, proxy.Fault{Mode: proxy.Cut}),
		cut("cluster-isolate-node", "a server that only its clients can reach", false, proxy.Fault{Mode: proxy.BlackHole}),
		of(&kind{
			name: "cluster-wipe-node", about: "a server killed and its store deleted", targets: natsServers,
			make: func(s *system, on string) fault { return &wipeNode{s, on} },
		}),
	}
}

// needsOneServer names the faults of a nats-server that is alone.
func needsOneServer(k *kind) bool {
	return slices.Contains(k.targets, "nats-server") || k.name == "lose-newest"
}
