package main

import (
	"context"

	"github.com/waybillhq/waybill/test/faults/proxy"
)

// network breaks the ways of some processes to a server.
type network struct {
	s         *system
	processes []string
	server    string
	fault     proxy.Fault
}

func (f *network) inject(context.Context) error {
	f.set(f.fault)
	return nil
}

func (f *network) heal(context.Context) error {
	f.set(proxy.Fault{Mode: proxy.Pass})
	return nil
}

func (f *network) set(fault proxy.Fault) {
	for _, process := range f.processes {
		for _, way := range f.s.ways.to(process, f.server) {
			way.Set(fault)
		}
	}
}
