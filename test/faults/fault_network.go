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
	before    map[string]int // hits
}

func (f *network) inject(context.Context) error {
	f.before = f.struck()
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

// struck is how many responses of the ways were lost or cut off, by what they answered.
func (f *network) struck() map[string]int {
	sum := map[string]int{}
	for _, process := range f.processes {
		for _, way := range f.s.ways.to(process, f.server) {
			for what, n := range way.Hits() {
				sum[what] += n
			}
		}
	}
	return sum
}

// hits is nil for what breaks no responses.
func (f *network) hits() map[string]int {
	if f.fault.Mode != proxy.LoseResponse && f.fault.Mode != proxy.ResetResponse {
		return nil
	}
	sum := f.struck()
	for what, n := range f.before {
		if sum[what] -= n; sum[what] == 0 {
			delete(sum, what)
		}
	}
	return sum
}
