package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/waybillhq/waybill/pipeline"
)

// offsetEnv is the environment variable that says by how much the wall clock of a process
// is off, as a number of seconds. Only binaries that the harness builds know it.
const offsetEnv = "WAYBILL_FAULTS_CLOCK_OFFSET"

// What the harness changes in the standard library: every reading of the wall clock goes
// through time.Now, also those of other people's packages. The monotonic clock, by which
// durations are measured and timers run, stays as it is, as it does on a machine whose
// clock is wrong.
const (
	clockReading = "\tsec, nsec, mono := runtimeNow()\n"
	clockChange  = clockReading + "\tsec += faultsOffset\n"
	clockSource  = `package time

import "syscall"

// faultsOffset is added to the wall clock, seconds.
var faultsOffset = readFaultsOffset()

func readFaultsOffset() int64 {
	text, set := syscall.Getenv("` + offsetEnv + `")
	if !set {
		return 0
	}
	n, err := atoi(text)
	if err != nil {
		panic("` + offsetEnv + `: want a number of seconds")
	}
	return int64(n)
}
`
)

// clockOverlay writes what `go build -overlay` needs to build a binary whose clock can be off
// into dir, and returns the name of its description. Nothing of the Go installation changes.
func clockOverlay(ctx context.Context, dir string) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return "", fmt.Errorf("find the standard library: %w", err)
	}
	library := filepath.Join(strings.TrimSpace(string(out)), "src", "time")
	source, err := os.ReadFile(filepath.Join(library, "time.go"))
	if err != nil {
		return "", fmt.Errorf("read the standard library: %w", err)
	}
	changed, err := changeClock(string(source))
	if err != nil {
		return "", fmt.Errorf("%s: %w", filepath.Join(library, "time.go"), err)
	}
	replace := map[string]string{}
	for name, text := range map[string]string{"time.go": changed, "faults_offset.go": clockSource} {
		path := filepath.Join(dir, name+".overlay")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return "", fmt.Errorf("change the clock: %w", err)
		}
		replace[filepath.Join(library, name)] = path
	}
	description, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", fmt.Errorf("change the clock: %w", err)
	}
	path := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(path, description, 0o644); err != nil {
		return "", fmt.Errorf("change the clock: %w", err)
	}
	return path, nil
}

// changeClock adds the offset to the one place where the wall clock is read.
func changeClock(source string) (string, error) {
	if n := strings.Count(source, clockReading); n != 1 {
		return "", fmt.Errorf("%q is there %d times, want once: this Go reads the clock otherwise, and the harness has to learn it", clockReading, n)
	}
	return strings.Replace(source, clockReading, clockChange, 1), nil
}

// wrongClocks checks that the clocks of processes are off as they were told to be. It
// breaks nothing: they are off from their start to their end.
type wrongClocks struct {
	s       *system
	offsets map[string]time.Duration // by process
}

// clockTolerance is how much later than the harness a process may have started.
const clockTolerance = time.Minute

func (f *wrongClocks) inject(ctx context.Context) error {
	return poll(ctx, startLimit, "the clocks are off as they were told to be", func(ctx context.Context) error {
		started, err := startTimes(ctx, f.s.queue)
		if err != nil {
			return err
		}
		for name, offset := range f.offsets {
			if !slices.Contains(processes, name) {
				continue // it has no heartbeat
			}
			at, alive := started[name]
			if !alive {
				return fmt.Errorf("%s has no heartbeat", name)
			}
			if off := time.Until(at) - offset; off.Abs() > clockTolerance {
				return fmt.Errorf("%s says that it was started at %s, %v from now; its clock was to be %v off", name, at.Format(time.RFC3339), time.Until(at).Round(time.Second), offset)
			}
		}
		return nil
	})
}

func (f *wrongClocks) heal(context.Context) error { return nil }

// startTimes are when the live processes were started, by their own clocks.
func startTimes(ctx context.Context, queue *pipeline.Queue) (map[string]time.Time, error) {
	started := map[string]time.Time{}
	for _, kind := range []string{pipeline.KindIngest, pipeline.KindForwarder, pipeline.KindJanitor} {
		live, err := pipeline.LiveProcesses(ctx, queue, kind)
		if err != nil {
			return nil, err
		}
		for _, h := range live {
			started[h.ID] = h.Started
		}
	}
	if len(started) == 0 {
		return nil, errors.New("no process has a heartbeat")
	}
	return started, nil
}
