package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/waybillhq/waybill/internal/devrun"
	"github.com/waybillhq/waybill/test/faults/proxy"
)

// isolation measures what a sink that is down does to the other one, and how fast its own
// backlog drains afterwards:
//
//	go run ./test/faults isolation --down ingress
//	go run ./test/faults isolation --down archive --pairs 5 --for 15s
//	go run ./test/faults isolation --down archive --pairs 1 --for 10m
//
// Load of a fixed rate is put on twice per pair: once with all well, once with the named
// sink away. It exits with 1 when a median of the pairs breaks a limit of its result.
type isolation struct {
	down   string // the sink that goes away; the other one is measured
	pairs  int
	length time.Duration // of the load without and with the fault
	settle time.Duration // of it, not measured
	rate   float64       // events offered a second
	peak   time.Duration // of the load that finds the highest rate
	linger time.Duration // of the archive
	out    string
	binary string
	keep   bool
}

func isolationFlags(args []string) (isolation, error) {
	c := isolation{}
	flags := flag.NewFlagSet("isolation", flag.ContinueOnError)
	flags.StringVar(&c.down, "down", ingressSink, "the sink that goes away: "+ingressSink+" or "+archiveSink)
	flags.IntVar(&c.pairs, "pairs", 5, "how many times to measure without and with the fault")
	flags.DurationVar(&c.length, "for", 15*time.Second, "how long each load, and the outage, lasts")
	flags.DurationVar(&c.settle, "settle", 3*time.Second, "its beginning, which is not measured")
	flags.Float64Var(&c.rate, "rate", 3000, "events offered a second")
	flags.DurationVar(&c.peak, "peak", 10*time.Second, "how long the highest rate is looked for")
	flags.DurationVar(&c.linger, "linger", 500*time.Millisecond, "how long an object of the archive waits to be filled")
	flags.StringVar(&c.out, "out", filepath.Join(".cache", "faults"), "directory of the result")
	flags.StringVar(&c.binary, "waybill", "", "the waybill binary; empty: it is built")
	flags.BoolVar(&c.keep, "keep", false, "keep the logs")
	if err := flags.Parse(args); err != nil {
		return c, err
	}
	switch {
	case c.down != ingressSink && c.down != archiveSink:
		return c, fmt.Errorf("--down %q: want %s or %s", c.down, ingressSink, archiveSink)
	case c.pairs < 1:
		return c, fmt.Errorf("--pairs %d: want at least 1", c.pairs)
	case c.settle < time.Second || c.length < 2*c.settle:
		return c, fmt.Errorf("--settle %v, --for %v: want at least 1s, and twice that", c.settle, c.length)
	case c.rate < callEvents || c.peak < 5*time.Second:
		return c, fmt.Errorf("--rate %g, --peak %v: want at least %d and 5s", c.rate, c.peak, callEvents)
	}
	return c, nil
}

func runIsolation(ctx context.Context, args []string, w io.Writer) error {
	config, err := isolationFlags(args)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := os.MkdirAll(config.out, 0o755); err != nil {
		return fmt.Errorf("directory of the result: %w", err)
	}
	binary, remove, err := binaryFor(ctx, config.binary)
	if err != nil {
		return err
	}
	defer remove()
	config.binary = binary
	system, err := startSystem(ctx, 0, config.binary, []setup{config.setup})
	if err != nil {
		return err
	}
	m := &measurement{isolation: config, system: system, out: w}
	result, err := m.run(ctx)
	if result != nil {
		m.watched(result)
		err = errors.Join(err, result.save(config.out), result.print(w))
	}
	err = errors.Join(err, system.stop())
	if config.keep || (result != nil && len(result.Violations) > 0) {
		err = errors.Join(err, m.keepLogs())
	}
	err = errors.Join(err, system.remove())
	if err == nil && len(result.Violations) > 0 {
		err = fmt.Errorf("%d violations; see %s", len(result.Violations), config.out)
	}
	return err
}

// setup has only the sinks behind proxies, so that nothing else costs time, and the
// endpoint keep its books in memory.
func (c isolation) setup(d *devrun.Config, s *system) error {
	events := int((c.rate*c.length.Seconds()+1000)*2)*(2*c.pairs) + 2_000_000
	d.Env = append(os.Environ(), fmt.Sprintf("WAYBILL_ENDPOINT_MAX_RECORDS=%d", events))
	d.ArchiveLinger = c.linger
	d.Via = func(process, server, addr string) (string, error) {
		if kindOf(process) != "forwarder" || (server != "s3" && server != "endpoint") {
			return addr, nil
		}
		return s.ways.via(process, server, addr)
	}
	return nil
}

// outage is the network between all forwarders and the sink's server cut: connections are
// reset, and new ones too.
func (c isolation) outage(s *system) fault {
	server := map[string]string{ingressSink: "endpoint", archiveSink: "s3"}[c.down]
	return &network{s: s, processes: forwarders, server: server, fault: proxy.Fault{Mode: proxy.Cut}}
}

// up is the sink that is measured.
func (c isolation) up() string {
	if c.down == ingressSink {
		return archiveSink
	}
	return ingressSink
}
