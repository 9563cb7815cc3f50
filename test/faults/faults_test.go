package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/waybillhq/waybill/pipeline"
)

// Three seeds, short ones: the whole system under load, broken and mended.
func TestThreeSeeds(t *testing.T) {
	binary, err := build(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		seed   uint64
		faults []string
	}{
		{265, []string{"kill-ingest", "kill-nats", "postgres-kill-backends", "endpoint-refuse", "net-s3-lose"}},
		{4, []string{"kill-forwarder", "kill-janitor", "postgres-immediate-stop", "endpoint-lost-responses", "net-nats-cut"}},
		{2, []string{"delete-events-stream", "delete-consumers", "postgres-numbers-back", "endpoint-down", "net-endpoint-reset"}},
	} {
		t.Run(fmt.Sprintf("seed %d", test.seed), func(t *testing.T) {
			t.Parallel() // most of the time is waiting: for leases, and for what must come again
			s := settings{length: 12 * time.Second, rate: 200, faults: test.faults, runs: 1, jobs: 1, out: t.TempDir(), binary: binary, slack: 3}
			result, err := runOne(t.Context(), s, test.seed, t.Output())
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range result.Violations {
				t.Error(v)
			}
			if result.Acknowledged < 500 {
				t.Errorf("%d events were acknowledged; there was no load", result.Acknowledged)
			}
			if len(result.Violations) > 0 {
				showLogs(t, result.Logs)
			}
		})
	}
}

// showLogs prints the ends of the logs, which go with the test's directory.
func showLogs(t *testing.T, dir string) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "logs", "*.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(t.Output(), "--- %s\n%s\n", filepath.Base(path), data[max(0, len(data)-4096):])
	}
}

func TestScheduleDependsOnTheSeedOnly(t *testing.T) {
	all := kinds()
	for seed := range uint64(200) {
		a, b := draw(seed, 40*time.Second, all), draw(seed, 40*time.Second, kinds())
		if fmt.Sprint(a) != fmt.Sprint(b) {
			t.Fatalf("seed %d has two schedules:\n%v\n%v", seed, a, b)
		}
		if len(a) < 3 {
			t.Errorf("seed %d has %d faults in 40 s", seed, len(a))
		}
	}
	if fmt.Sprint(draw(1, 40*time.Second, all)) == fmt.Sprint(draw(2, 40*time.Second, all)) {
		t.Error("seeds 1 and 2 have the same schedule")
	}
}

func TestScheduleCoversTheTable(t *testing.T) {
	all := kinds()
	seen := map[string]bool{}
	for seed := range uint64(len(all)) {
		for _, s := range draw(seed+1, 40*time.Second, all) {
			seen[s.kind.name] = true
		}
	}
	for _, k := range all {
		if !seen[k.name] {
			t.Errorf("%d seeds never inject %s", len(all), k.name)
		}
	}
}

func TestEverySecondSeedHasAConditionOfTheTable(t *testing.T) {
	seen := map[string]bool{}
	for seed := range uint64(2 * len(conditions())) {
		c, err := settings{}.conditionOf(seed)
		if err != nil {
			t.Fatal(err)
		}
		if (seed%2 == 0) != (c.name == noCondition) {
			t.Errorf("seed %d has the condition %s", seed, c.name)
		}
		seen[c.name] = true
	}
	for _, c := range conditions() {
		if !seen[c.name] {
			t.Errorf("no seed has the condition %s", c.name)
		}
		if c.about == "" || len(c.allows(kinds())) == 0 {
			t.Errorf("%s is not complete, or allows no fault", c.name)
		}
	}
	if c, err := (settings{faults: []string{"kill-ingest"}}).conditionOf(1); err != nil || c.name != noCondition {
		t.Errorf("named faults have the condition %v (%v)", c, err)
	}
}

func TestConditionExcludesFaultsOnWhatItBreaks(t *testing.T) {
	c, err := settings{condition: "s3-down"}.conditionOf(0)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range c.allows(kinds()) {
		if strings.HasPrefix(k.name, "net-s3-") {
			t.Errorf("%s can take place while S3 is away", k.name)
		}
	}
}

func TestClusterFaultsNeedACluster(t *testing.T) {
	for _, c := range conditions() {
		for _, k := range c.allows(kinds()) {
			cluster := c.name == clusterCondition
			if strings.HasPrefix(k.name, "cluster-") && !cluster || k.name == "kill-nats" && cluster {
				t.Errorf("%s can take place under the condition %s", k.name, c.name)
			}
		}
	}
}

func TestScheduleBreaksNothingTwiceAtOnce(t *testing.T) {
	for seed := range uint64(200) {
		steps := draw(seed, 40*time.Second, kinds())
		for i, a := range steps {
			for _, b := range steps[:i] {
				if b.At+b.Hold <= a.At {
					continue
				}
				for _, part := range a.kind.parts(a.on) {
					if slices.Contains(b.kind.parts(b.on), part) {
						t.Errorf("seed %d breaks %s by %v while it is broken by %v", seed, part, a, b)
					}
				}
			}
		}
	}
}

func TestKindsHaveNamesOfTheirOwn(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range kinds() {
		if seen[k.name] {
			t.Errorf("%s is in the table twice", k.name)
		}
		seen[k.name] = true
		if len(k.targets) == 0 || k.make == nil || k.parts == nil || k.about == "" {
			t.Errorf("%s is not complete", k.name)
		}
	}
}

func TestWrongFlagsAreSaid(t *testing.T) {
	for _, test := range []struct{ args, want string }{
		{"--fault nonsense", "no such fault"},
		{"--for 1s", "at least"},
		{"--runs 0", "at least 1"},
		{"--jobs 0", "at least 1"},
		{"--rate 0", "positive"},
		{"--condition nonsense", "no such condition"},
	} {
		err := run(t.Context(), strings.Fields(test.args), io.Discard)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", test.args, err)
		}
	}
}

func TestWatchTellsBadEnds(t *testing.T) {
	w := newWatch()
	w.dies("ingest-1")
	w.hear("ingest-1 ended: signal: killed (its log is x); it is started again in 500ms")
	if w.awaited("ingest-1") == nil {
		t.Error("it has not been started again yet")
	}
	w.hear("ingest-1 runs again, as process 7")
	if err := w.awaited("ingest-1"); err != nil {
		t.Error(err)
	}
	w.stops("janitor-1")
	w.hear("janitor-1 ended: exit status 0 (its log is x); it is started again in 500ms")
	w.hear("janitor-1 runs again, as process 8")
	if len(w.problems) != 0 {
		t.Errorf("problems %q, want none", w.problems)
	}
	w.stops("janitor-2")
	w.hear("janitor-2 ended: exit status 1 (its log is x); it is started again in 500ms")
	w.hear("ingest-1 ended: exit status 2 (its log is x); it is started again in 500ms")
	if len(w.problems) != 2 {
		t.Errorf("problems %q, want a bad end and an unasked one", w.problems)
	}
}

func TestWatchTimesTakeovers(t *testing.T) {
	w := newWatch()
	w.see(map[string]pipeline.LeaseHolder{"0": {Forwarder: "forwarder-1", Instance: "a"}, "1": {Forwarder: "forwarder-2", Instance: "b"}})
	w.dies("forwarder-1")
	w.see(map[string]pipeline.LeaseHolder{"1": {Forwarder: "forwarder-2", Instance: "b"}})
	if len(w.takeovers) != 0 {
		t.Fatalf("a lane without a forwarder passes for taken over: %v", w.takeovers)
	}
	w.see(map[string]pipeline.LeaseHolder{"0": {Forwarder: "forwarder-1", Instance: "c"}, "1": {Forwarder: "forwarder-2", Instance: "b"}})
	if len(w.takeovers) != 1 || w.takeovers[0].Lanes != 1 {
		t.Fatalf("takeovers %v, want one of one lane", w.takeovers)
	}
}

// The first lane that was taken over may be back with its old holder, which goes on, before the last one is.
func TestWatchCountsALaneOnceTakenOver(t *testing.T) {
	paused, other := pipeline.LeaseHolder{Forwarder: "forwarder-1", Instance: "a"}, pipeline.LeaseHolder{Forwarder: "forwarder-2", Instance: "b"}
	w := newWatch()
	w.see(map[string]pipeline.LeaseHolder{"0": paused, "1": paused})
	w.lapses("forwarder-1")
	w.see(map[string]pipeline.LeaseHolder{"0": other, "1": paused})
	if len(w.takeovers) != 0 {
		t.Fatalf("takeovers %v, want none yet", w.takeovers)
	}
	w.see(map[string]pipeline.LeaseHolder{"0": paused, "1": other})
	if len(w.takeovers) != 1 || w.takeovers[0].Lanes != 2 {
		t.Fatalf("takeovers %v, want one of two lanes", w.takeovers)
	}
}

func TestInterruptedRunCleansUp(t *testing.T) {
	dir := t.TempDir()
	binary, err := build(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", dir)
	ctx, cancel := context.WithCancel(t.Context())
	out := &interrupting{cancel: cancel, at: "everything runs"}
	s := settings{length: 20 * time.Second, rate: 100, faults: []string{"pause-ingest"}, runs: 1, jobs: 1, out: dir, binary: binary, slack: 3}
	if _, err := runOne(ctx, s, 1, out); err == nil || !strings.Contains(err.Error(), "interrupted") {
		t.Error(err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "waybill-faults-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("it leaves %v behind (%v)", left, err)
	}
}

// interrupting cancels when a line is printed.
type interrupting struct {
	cancel context.CancelFunc
	at     string
}

func (i *interrupting) Write(p []byte) (int, error) {
	if strings.Contains(string(p), i.at) {
		i.cancel()
	}
	return len(p), nil
}
