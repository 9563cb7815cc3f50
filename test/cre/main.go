// Command cre runs workflows as a local CRE does, each of which emits an event whenever its
// clock says so, against the whole system, every part a process of its own, and watches what
// they do to the tables.
//
//	go run ./test/cre                            # 1 workflow, then 20: an event a second each, 3 minutes
//	go run ./test/cre --for 10m --workflows 50   # another number, for longer
//	go run ./test/cre load                       # the highest rate that 20 workflows keep up
//
// It prints a line for each look at the system. The status is 0 only if in each interval
// between two looks rows were inserted and rows were deleted, the deletes kept up with the
// inserts, what is pending stayed flat, and in the end the endpoint and the archive have each
// emitted event, once, and the tables none.
//
// load lets the workflows emit at ever shorter intervals until events are accepted, delivered or
// settled more slowly than they are emitted, and then looks for the shortest interval between
// the last two. What it prints is of this machine, which the producer shares.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/waybillhq/waybill/internal/cli"
)

func main() {
	cli.Exit("cre", cli.RunUntilSignal(func(ctx context.Context) error { return run(ctx, os.Args[1:], os.Stdout) }))
}

// run does what the arguments say.
func run(ctx context.Context, args []string, w io.Writer) error {
	if len(args) > 0 && args[0] == "load" {
		return runLoad(ctx, args[1:], w)
	}
	return runWatch(ctx, args, w)
}

// common are the flags of both commands.
type common struct {
	binary string
	every  time.Duration // of the looks
}

func (c *common) flags(name string) *flag.FlagSet {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.StringVar(&c.binary, "waybill", "", "the waybill binary; empty: it is built")
	flags.DurationVar(&c.every, "sample", 5*time.Second, "pause between two looks at the system")
	return flags
}

// parse reports false where only help was wanted.
func parse(flags *flag.FlagSet, args []string) (bool, error) {
	err := flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return false, nil
	}
	if err == nil && flags.NArg() > 0 {
		err = fmt.Errorf("%q is not understood; want flags, or load before them", flags.Arg(0))
	}
	return err == nil, err
}

func runWatch(ctx context.Context, args []string, w io.Writer) error {
	var c common
	flags := c.flags("cre")
	length := flags.Duration("for", 3*time.Minute, "how long each number of workflows emits")
	interval := flags.Duration("every", time.Second, "how often each workflow emits an event")
	numbers := flags.String("workflows", "1,20", "numbers of workflows, one after another")
	if more, err := parse(flags, args); !more {
		return err
	}
	var phases []phase
	for text := range strings.SplitSeq(*numbers, ",") {
		n, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("--workflows: %q; want numbers with commas between them, such as 1,20", *numbers)
		}
		phases = append(phases, phase{workflows: n, interval: *interval, length: *length, sample: c.every})
	}
	for _, p := range phases {
		if err := p.validate(); err != nil {
			return err
		}
	}
	return withSystem(ctx, c.binary, func(s *system) error {
		var failures []error
		for _, p := range phases {
			failures = append(failures, p.run(ctx, s, w))
		}
		return errors.Join(failures...)
	})
}

func runLoad(ctx context.Context, args []string, w io.Writer) error {
	c := common{}
	flags := c.flags("cre load")
	length := flags.Duration("for", 20*time.Second, "how long each interval is tried")
	workflows := flags.Int("workflows", 20, "number of workflows")
	first := flags.Duration("first", time.Second, "the longest interval, which is tried first")
	last := flags.Duration("last", 100*time.Microsecond, "the shortest interval, at which it ends")
	if more, err := parse(flags, args); !more {
		return err
	}
	l := load{workflows: *workflows, first: *first, last: *last, length: *length, sample: c.every, jitter: archiveLinger}
	if err := l.validate(); err != nil {
		return err
	}
	return withSystem(ctx, c.binary, func(s *system) error { return l.run(ctx, s, w) })
}
