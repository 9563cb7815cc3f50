package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// executable is the waybill binary under test, built once.
var executable string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "waybill-cre-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	// The processes run as who runs the tests; only Postgres does not, and it needs no binary.
	built, err := build(context.Background(), dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	executable = filepath.Clean(built)
	return m.Run()
}

// lengthVariable may name how long each number of workflows emits in TestWorkflows, such as 5m.
const lengthVariable = "CRE_FOR"

// One workflow, and then twenty, each with an event a second.
func TestWorkflows(t *testing.T) {
	length := 30 * time.Second
	if text := os.Getenv(lengthVariable); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatalf("%s: %v; want a duration such as 5m", lengthVariable, err)
		}
	}
	mustRun(t, func(s *system) error {
		for _, n := range []int{1, 20} {
			p := phase{workflows: n, interval: time.Second, length: length, sample: 6 * time.Second}
			if err := p.validate(); err != nil {
				return err
			}
			if err := p.run(t.Context(), s, t.Output()); err != nil {
				return err
			}
		}
		return nil
	})
}

// Without a janitor nothing is deleted, and each check that looks at that says so.
func TestWithoutAJanitor(t *testing.T) {
	mustRun(t, func(s *system) error {
		s.stack.Hold("janitor-1")
		for _, part := range s.stack.Parts() {
			if part.Name == "janitor-1" {
				if err := syscall.Kill(part.PID, syscall.SIGKILL); err != nil {
					return err
				}
			}
		}
		p := phase{workflows: 20, interval: 500 * time.Millisecond, length: 12 * time.Second, sample: 3 * time.Second}
		log := newLog(t.Output())
		seen, err := p.watch(t.Context(), s, log)
		if err != nil {
			return err
		}
		verdict := judge(seen.samples, p.rate())
		for _, want := range []string{"no row was deleted from events", "no row was deleted from batches", "the deletes do not keep up", "are pending", "not flat"} {
			if verdict == nil || !strings.Contains(verdict.Error(), want) {
				t.Errorf("the verdict lacks %q: %v", want, verdict)
			}
		}
		l := load{workflows: p.workflows, length: p.length, sample: p.sample}
		if step := l.judge(p.interval, seen.samples, seen.tally); step.keptUp() || step.settled > step.offered/4 {
			t.Errorf("the load test takes it for kept up: %v", step)
		}
		s.stack.Release("janitor-1")
		// It catches up; what Postgres has counted is exact again.
		return seen.settle(t.Context(), log)
	})
}

// The search for the highest rate, as far as any machine comes.
func TestLoad(t *testing.T) {
	mustRun(t, func(s *system) error {
		l := load{
			workflows: 20, first: 400 * time.Millisecond, last: 200 * time.Millisecond, length: 9 * time.Second, sample: 3 * time.Second,
			jitter: 3 * time.Second, // other tests run beside it
		}
		if err := l.validate(); err != nil {
			return err
		}
		var out strings.Builder
		if err := l.run(t.Context(), s, &out); err != nil {
			return err
		}
		fmt.Fprint(t.Output(), out.String())
		for _, want := range []string{"every 400ms", "every 200ms", "highest rate kept up"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("it does not tell of %q", want)
			}
		}
		return nil
	})
}

func mustRun(t *testing.T, do func(*system) error) {
	t.Helper()
	if err := withSystem(t.Context(), executable, do); err != nil {
		t.Fatal(err)
	}
}
