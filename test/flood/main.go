// Command flood sends ingest far more than it can take: 2,000 producers with calls of 16 MiB,
// over HTTP and over gRPC, each on a connection of its own, and then 300 on three
// connections. It starts the whole system, every part a process of its own.
//
//	go run ./test/flood                        # about two minutes
//	go run ./test/flood --slow                 # every commit takes a second
//	go run ./test/flood --producers 200 --for 3s
//
// It prints a line per wave and exits with 1 unless ingest's memory stayed below the limit,
// every call was accepted or told to come again, every accepted event is stored, and small
// producers got through afterwards.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/waybillhq/waybill/internal/cli"
)

func main() {
	cli.Exit("flood", cli.RunUntilSignal(func(ctx context.Context) error { return run(ctx, os.Args[1:], os.Stdout) }))
}

// settings are what the flags say.
type settings struct {
	producers int
	length    time.Duration
	slow      bool
	limit     int // MiB
	binary    string
}

func run(ctx context.Context, args []string, w io.Writer) error {
	s := settings{}
	flags := flag.NewFlagSet("flood", flag.ContinueOnError)
	flags.IntVar(&s.producers, "producers", 2000, "producers at once, each on a connection of its own")
	flags.DurationVar(&s.length, "for", 15*time.Second, "how long each wave sends")
	flags.BoolVar(&s.slow, "slow", false, "let every commit of Postgres take a second")
	flags.IntVar(&s.limit, "limit", 200, "MiB that ingest may have resident")
	flags.StringVar(&s.binary, "waybill", "", "the waybill binary; empty: it is built")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if s.producers < 1 || s.length <= 0 || s.limit < 1 {
		return errors.New("--producers, --for and --limit: want positive values")
	}
	if s.binary == "" {
		dir, err := os.MkdirTemp("", "waybill-flood-bin-")
		if err != nil {
			return fmt.Errorf("directory of the binary: %w", err)
		}
		defer os.RemoveAll(dir)
		if s.binary, err = build(ctx, dir); err != nil {
			return err
		}
	}
	return flood(ctx, s, w)
}

// build builds the waybill binary of this checkout.
func build(ctx context.Context, dir string) (string, error) {
	binary := filepath.Join(dir, "waybill")
	cmd := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-o", binary, "github.com/waybillhq/waybill/cmd/waybill")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build waybill: %w\n%s", err, out)
	}
	return binary, nil
}

// flood starts a system, sends the waves and checks what became of them.
func flood(ctx context.Context, s settings, w io.Writer) (err error) {
	sys, err := startSystem(ctx, s.binary)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sys.stop()) }()
	if s.slow {
		if err := sys.slowCommits(ctx); err != nil {
			return err
		}
	}
	var failures []error
	for _, wave := range waves(s.producers) {
		result, err := wave.send(ctx, sys, s.length)
		if err != nil {
			return fmt.Errorf("%s: %w", wave.name, err)
		}
		after, err := smallProducers(ctx, sys)
		if err != nil {
			failures = append(failures, fmt.Errorf("%s: small producers afterwards: %w", wave.name, err))
		}
		peak, err := sys.peakMiB()
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "%-12s %5d producers on %4d connections: %5d calls of %d MiB accepted, %6d told to come again, %4d given up, %d MiB at most, small ones through in %v\n",
			wave.name, wave.producers, wave.connections, result.accepted, callBytes>>20, result.refused, result.givenUp, peak, after.Round(time.Millisecond))
		failures = append(failures, result.check(wave.name)...)
		if peak >= s.limit {
			failures = append(failures, fmt.Errorf("%s: ingest had %d MiB resident; the limit is %d", wave.name, peak, s.limit))
		}
		if err := sys.checkStored(ctx, wave.name, result); err != nil {
			failures = append(failures, err)
		}
	}
	return errors.Join(failures...)
}
