// Command faults tries to break Waybill's guarantees. A run starts the whole system, every
// part a process of its own, puts load on it, breaks it in ways drawn from a seed, lets it
// recover, and then compares what producers were told with what the sinks have, event by
// event.
//
//	go run ./test/faults --seed 7 --for 40s
//	go run ./test/faults --seed 1 --fault kill-forwarder --fault lose-endpoint-responses
//	go run ./test/faults --seed 1 --condition archive-down --fault kill-janitor
//	go run ./test/faults --seed 1 --runs 50
//
// It prints a line per fault and a summary per run, writes <out>/seed-<n>.json, and exits
// with 1 after a violation; then the logs of that run stay in <out>/seed-<n>/. The schedule
// depends on the seed, --for, --condition and --fault only. --list names the conditions and
// the faults.
//
// `go run ./test/faults isolation` is another program: it measures. See isolation.
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
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/waybillhq/waybill/internal/cli"
)

func main() {
	cli.Exit("faults", cli.RunUntilSignal(func(ctx context.Context) error { return run(ctx, os.Args[1:], os.Stdout) }))
}

// settings are what the flags say.
type settings struct {
	seed   uint64
	length time.Duration
	faults []string
	// condition names what the whole run takes place under; empty: the seed's, or none where
	// faults are named.
	condition  string
	runs, jobs int
	rate       float64
	out        string
	binary     string
	keep       bool
	// slack is how many times their limits a run and a takeover may take: 1, and more where
	// other things keep the machine busy.
	slack int
}

func run(ctx context.Context, args []string, w io.Writer) error {
	if len(args) > 0 && args[0] == "isolation" {
		return runIsolation(ctx, args[1:], w)
	}
	s := settings{slack: 1}
	flags := flag.NewFlagSet("faults", flag.ContinueOnError)
	flags.Uint64Var(&s.seed, "seed", 1, "seed of the first run; the others count up from it")
	flags.DurationVar(&s.length, "for", 40*time.Second, "how long a run breaks things under load")
	flags.Func("fault", "break only this; may be repeated", func(name string) error {
		s.faults = append(s.faults, name)
		return nil
	})
	flags.StringVar(&s.condition, "condition", "", "what the whole run takes place under; none: \""+noCondition+"\"; default: the seed's, or none with --fault")
	flags.IntVar(&s.runs, "runs", 1, "how many seeds")
	flags.IntVar(&s.jobs, "jobs", 1, "how many seeds run at the same time")
	flags.Float64Var(&s.rate, "rate", 400, "events offered a second")
	flags.StringVar(&s.out, "out", filepath.Join(".cache", "faults"), "directory of the results")
	flags.StringVar(&s.binary, "waybill", "", "the waybill binary; empty: it is built")
	flags.BoolVar(&s.keep, "keep", false, "keep the logs of runs without a violation too")
	list := flags.Bool("list", false, "list the conditions and the faults, and end")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if *list {
		return listFaults(w)
	}
	if err := s.validate(); err != nil {
		return err
	}
	return runAll(ctx, s, w)
}

// minLength leaves room for a fault and the recovery from it.
const minLength = 8 * time.Second

func (s settings) validate() error {
	switch {
	case s.length < minLength:
		return fmt.Errorf("--for %v: want at least %v", s.length, minLength)
	case s.runs < 1:
		return fmt.Errorf("--runs %d: want at least 1", s.runs)
	case s.jobs < 1:
		return fmt.Errorf("--jobs %d: want at least 1", s.jobs)
	case s.rate <= 0:
		return fmt.Errorf("--rate %g: want a positive number of events per second", s.rate)
	}
	if _, err := s.conditionOf(s.seed); err != nil {
		return err
	}
	_, err := selectKinds(s.faults)
	return err
}

func runAll(ctx context.Context, s settings, w io.Writer) error {
	if err := os.MkdirAll(s.out, 0o755); err != nil {
		return fmt.Errorf("directory of the results: %w", err)
	}
	binary, remove, err := binaryFor(ctx, s.binary)
	if err != nil {
		return err
	}
	defer remove()
	s.binary = binary
	failed, err := runSeeds(ctx, s, w)
	fmt.Fprintf(w, "faults: %d runs passed, %d failed\n", s.runs-len(failed), len(failed))
	if err != nil {
		return err
	}
	if len(failed) > 0 {
		return fmt.Errorf("violations with the seeds %s; see %s", strings.Join(failed, ", "), s.out)
	}
	return nil
}

// runSeeds runs the seeds, s.jobs at a time, and returns those that failed: a run that the
// harness itself could not finish is one, and ends nothing but itself.
func runSeeds(ctx context.Context, s settings, w io.Writer) (failed []string, err error) {
	var mu sync.Mutex // guards failed, errs and w
	var errs []error
	var group errgroup.Group
	group.SetLimit(s.jobs)
	for i := range s.runs {
		seed := s.seed + uint64(i)
		group.Go(func() error {
			if ctx.Err() != nil {
				return nil
			}
			out := w
			if s.jobs > 1 {
				out = &labelled{to: w, mu: &mu, label: fmt.Sprintf("[%d] ", seed)}
			}
			result, err := runOne(ctx, s, seed, out)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, fmt.Errorf("seed %d: %w", seed, err))
			}
			if err != nil || len(result.Violations) > 0 {
				failed = append(failed, fmt.Sprint(seed))
			}
			return nil
		})
	}
	_ = group.Wait() // its functions return no error
	return failed, errors.Join(append(errs, ctx.Err())...)
}

// labelled puts a label before each line, so that runs at the same time can be told apart.
type labelled struct {
	to    io.Writer
	mu    *sync.Mutex
	label string
}

func (l *labelled) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(string(p)) {
		if _, err := io.WriteString(l.to, l.label+line); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// binaryFor returns the given binary, or one that it builds and that remove deletes.
func binaryFor(ctx context.Context, given string) (binary string, remove func(), err error) {
	if given != "" {
		return given, func() {}, nil
	}
	dir, err := os.MkdirTemp("", "waybill-faults-bin-")
	if err != nil {
		return "", nil, fmt.Errorf("directory of the binary: %w", err)
	}
	remove = func() { _ = os.RemoveAll(dir) } // what is left is a binary in a temporary directory
	if binary, err = build(ctx, dir); err != nil {
		remove()
		return "", nil, err
	}
	return binary, remove, nil
}

// build builds the waybill binary of this checkout, with its fail points and a clock that can be off.
func build(ctx context.Context, dir string) (string, error) {
	binary := filepath.Join(dir, "waybill")
	overlay, err := clockOverlay(ctx, dir)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-buildvcs=false",
		"-tags=failpoints", "-overlay", overlay,
		"-o", binary, "github.com/waybillhq/waybill/cmd/waybill")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build waybill: %w\n%s", err, out)
	}
	return binary, nil
}

func listFaults(w io.Writer) error {
	for _, c := range conditions() {
		if _, err := fmt.Fprintf(w, "%-28s %s (condition)\n", c.name, c.about); err != nil {
			return err
		}
	}
	for _, k := range kinds() {
		if _, err := fmt.Fprintf(w, "%-28s %s (%s)\n", k.name, k.about, strings.Join(k.targets, ", ")); err != nil {
			return err
		}
	}
	return nil
}
