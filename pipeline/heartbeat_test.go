package pipeline

import (
	"context"
	"slices"
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
	if ids := live(KindJanitor); !slices.Equal(ids, []string{"host-2"}) {
		t.Errorf("after a stop in good order: %v", ids)
	}
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

func TestHeartbeatIDs(t *testing.T) {
	for _, id := range []string{"", "a b", "a..b", ".a", "a.", "a>b", "a*b"} {
		if err := validateProcessID(id); err == nil {
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
