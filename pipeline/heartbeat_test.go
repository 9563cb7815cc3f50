package pipeline

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
)

func TestHeartbeats(t *testing.T) {
	n := mustNATS(t)
	q, nc := mustQueue(t, n)
	cfg := DefaultQueueConfig()
	cfg.MaxBytes, cfg.LeaseTTL = 256<<20, testLeaseTTL
	if _, err := LiveProcesses(t.Context(), q, KindJanitor); err == nil {
		t.Error("no error without a bucket")
	}
	beat := func(kind, id string) func() Heartbeat {
		h := NewHeartbeat(kind, id, "v1")
		h.Lanes = []int{1, 2}
		return func() Heartbeat { return h }
	}
	run := func(q *Queue, kind, id string) (stop func()) {
		return mustRun(t, func(ctx context.Context) error { return RunHeartbeat(ctx, q, testLog(t), beat(kind, id)) })
	}
	// It starts before the bucket exists, and an id may hold dots.
	stop := run(q, KindJanitor, "host-1.example.org")
	if err := q.ensureStreams(t.Context(), cfg, 4); err != nil {
		t.Fatal(err)
	}
	live := func(kind string) []string {
		found, err := LiveProcesses(t.Context(), q, kind)
		if err != nil {
			return nil
		}
		ids := []string{}
		for _, h := range found {
			if h.Kind != kind || h.PID == 0 || h.Host == "" || h.Version != "v1" || !slices.Equal(h.Lanes, []int{1, 2}) {
				t.Errorf("heartbeat %+v", h)
			}
			ids = append(ids, h.ID)
		}
		slices.Sort(ids)
		return ids
	}
	eventually(t, patience, "a janitor is alive", func() bool {
		return slices.Equal(live(KindJanitor), []string{"host-1.example.org"})
	})
	if ids := live(KindForwarder); len(ids) != 0 {
		t.Errorf("forwarders: %v", ids)
	}
	other, otherConn := mustQueue(t, n)
	run(other, KindJanitor, "host-2")
	eventually(t, patience, "both are alive", func() bool { return len(live(KindJanitor)) == 2 })
	stop()
	if ids := live(KindJanitor); ids == nil || slices.Contains(ids, "host-1.example.org") {
		t.Errorf("after a stop in good order: %v", ids)
	}
	// Its word may have expired while the machine stood still.
	eventually(t, patience, "the other one lives on", func() bool { return slices.Equal(live(KindJanitor), []string{"host-2"}) })
	// NATS goes away and comes back: the process lives on.
	if err := n.Restart(); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "it is alive after a restart of NATS", func() bool {
		return nc.IsConnected() && slices.Equal(live(KindJanitor), []string{"host-2"})
	})
	otherConn.Close() // as good as kill -9
	eventually(t, patience, "its word expires", func() bool { return nc.IsConnected() && live(KindJanitor) != nil && len(live(KindJanitor)) == 0 })
}

// Two live processes with one id are no two in the eyes of the others: each says so of itself, until the other has gone.
func TestTwoProcessesWithOneID(t *testing.T) {
	t.Parallel()
	q, _ := mustQueue(t, mustNATS(t))
	cfg := DefaultQueueConfig()
	cfg.MaxBytes, cfg.LeaseTTL = 256<<20, testLeaseTTL
	if err := q.ensureStreams(t.Context(), cfg, 4); err != nil {
		t.Fatal(err)
	}
	var beats atomic.Int64
	run := func(pid int) (stop func()) {
		h := NewHeartbeat(KindForwarder, "one", "v1")
		h.PID, h.Problem = pid, "busy"
		return mustRun(t, func(ctx context.Context) error {
			return RunHeartbeat(ctx, q, testLog(t), func() Heartbeat { beats.Add(1); return h })
		})
	}
	seen := map[int]string{}
	look := func() (pid int, problem string) {
		found, err := LiveProcesses(t.Context(), q, KindForwarder)
		if err != nil || len(found) != 1 {
			return 0, ""
		}
		seen[found[0].PID] = found[0].Problem
		return found[0].PID, found[0].Problem
	}
	run(1)
	eventually(t, patience, "it has said several times that it is alive", func() bool { return beats.Load() > 4 })
	// Its word may have expired while the machine stood still.
	eventually(t, patience, "it is alive", func() bool { pid, _ := look(); return pid == 1 })
	if seen[1] != "busy" { // alone it has no twin
		t.Errorf("alone it says %q", seen[1])
	}
	stop := run(2)
	host := NewHeartbeat(KindForwarder, "one", "v1").Host
	says := func(of int) string {
		return fmt.Sprintf(`busy; another live forwarder has the id "one" too, process %d on %s: give one of them another --id (WAYBILL_ID)`, of, host)
	}
	eventually(t, patience, "both say so", func() bool { look(); return seen[1] == says(2) && seen[2] == says(1) })
	stop()
	eventually(t, patience, "the one that is left says so no more", func() bool { pid, problem := look(); return pid == 1 && problem == "busy" })
}

// A process that is to stop while it says that it is alive takes its word back all the same.
func TestAStopDuringAHeartbeat(t *testing.T) {
	q, _ := mustQueue(t, mustNATS(t))
	if err := q.ensureStreams(t.Context(), DefaultQueueConfig(), 4); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	beats := 0
	err := RunHeartbeat(ctx, q, testLog(t), func() Heartbeat {
		if beats++; beats == 3 { // the first is for the check of the id
			stop()
		}
		return NewHeartbeat(KindForwarder, "it", "v1")
	})
	if err != nil {
		t.Fatal(err)
	}
	if live, err := LiveProcesses(t.Context(), q, KindForwarder); err != nil || len(live) != 0 {
		t.Errorf("after the stop: %+v, %v", live, err)
	}
}

func TestHeartbeatIDs(t *testing.T) {
	for _, id := range []string{"", "a b", "a..b", ".a", "a.", "a>b", "a*b"} {
		if err := ValidateProcessID(id); err == nil {
			t.Errorf("%q is taken for an id", id)
		}
	}
	q := &Queue{}
	err := RunHeartbeat(t.Context(), q, testLog(t), func() Heartbeat { return Heartbeat{Kind: KindIngest, ID: "a b"} })
	if err == nil {
		t.Error("a heartbeat with an id that cannot be a key runs")
	}
}

func TestCursors(t *testing.T) {
	n := mustNATS(t)
	q, _ := mustQueue(t, n)
	c := NewCursors(q, "archive")
	if _, ok, err := c.Load(t.Context(), 3); ok || err == nil {
		t.Errorf("without a bucket: %v, %v", ok, err)
	}
	cfg := DefaultQueueConfig()
	cfg.MaxBytes = 256 << 20
	if err := q.ensureStreams(t.Context(), cfg, 4); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := c.Load(t.Context(), 3); ok || err != nil {
		t.Errorf("before the first: %v, %v", ok, err)
	}
	for _, offset := range []int64{0, 1 << 40} {
		if err := c.Store(t.Context(), 3, offset); err != nil {
			t.Fatal(err)
		}
		if got, ok, err := c.Load(t.Context(), 3); got != offset || !ok || err != nil {
			t.Errorf("stored %d, got %d, %v, %v", offset, got, ok, err)
		}
	}
	if _, ok, _ := c.Load(t.Context(), 4); ok {
		t.Error("another lane has it too")
	}
	if _, ok, _ := NewCursors(q, "other").Load(t.Context(), 3); ok {
		t.Error("another sink has it too")
	}
}
