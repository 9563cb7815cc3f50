package main

import (
	"context"

	"github.com/waybillhq/waybill/test/faults/proxy"
)

// producerKinds are each way of breaking the connections between the producers and an
// ingest.
func producerKinds() []*kind {
	var out []*kind
	for _, way := range networkWays() {
		out = append(out, &kind{
			name: "net-ingest-" + way.name, about: "network from the producers to an ingest: " + way.about, targets: ingests,
			min: 2 * second, max: 8 * second,
			parts: func(on string) []string { return []string{"producers to " + on} },
			make:  func(s *system, on string) fault { return &front{s, on, way.fault} },
		})
	}
	return out
}

// front breaks the ways of the producers to an ingest.
type front struct {
	s     *system
	on    string
	fault proxy.Fault
}

func (f *front) inject(context.Context) error { return f.set(f.fault) }

func (f *front) heal(context.Context) error { return f.set(proxy.Fault{Mode: proxy.Pass}) }

func (f *front) set(fault proxy.Fault) error {
	for _, server := range []string{"http", "grpc"} {
		for _, way := range f.s.ways.to(f.on, server) {
			way.Set(fault)
		}
	}
	return nil
}
