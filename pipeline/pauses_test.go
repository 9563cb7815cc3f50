package pipeline

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// holds reports whether some forwarder has a lane of a sink.
func (s *site) holds(t testing.TB, sink string, lane int) bool {
	t.Helper()
	for _, lanes := range sortedHolders(t, s, sink) {
		if slices.Contains(lanes, lane) {
			return true
		}
	}
	return false
}

// A paused lane stands still and nothing else does; its queue waits for it; it is nobody's fault that
// nobody holds it, and everybody says why. Resumed, it gets each batch once, in order.
func TestPausedLaneStandsStill(t *testing.T) {
	t.Parallel()
	s := mustSite(t, 4, "ingress", "archive")
	ingress, archive := newRecorder("ingress"), newRecorder("archive")
	forwarders := []*Forwarder{}
	for _, id := range []string{"a", "b"} {
		q, _ := mustQueue(t, s.nats)
		f, _ := s.mustForwarder(t, q, id, nil, ingress, archive)
		forwarders = append(forwarders, f)
	}
	s.mustSend(t, 3)
	s.mustSettle(t, patience)
	if _, err := PauseLanes(t.Context(), s.queue, "ingress", []int{1}, "maintenance"); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "the lane is given up", func() bool { return !s.holds(t, "ingress", 1) })
	before := len(ingress.order()[1])
	s.mustSend(t, 5)
	eventually(t, patience, "all else is delivered", func() bool {
		receipts := s.receipts(t)
		for _, b := range s.sent {
			if len(receipts["archive"][b.ID]) == 0 || b.Lane != 1 && len(receipts["ingress"][b.ID]) == 0 {
				return false
			}
		}
		return true
	})
	// Its lease is forgotten, and they have looked for vacant lanes since.
	eventually(t, patience, "the lease is forgotten", func() bool {
		leased, err := s.queue.leased(t.Context())
		return err == nil && !leased[SinkLane{"ingress", 1}]
	})
	forgotten := time.Now()
	eventually(t, patience, "time passes", func() bool { return time.Since(forgotten) > time.Second })
	if after := len(ingress.order()[1]); after != before || s.holds(t, "ingress", 1) {
		t.Errorf("the paused lane got %d batches, or is held", after-before)
	}
	if info := s.mustConsumer(t, "ingress", 1); info.NumPending+uint64(info.NumAckPending) != 5 {
		t.Errorf("its queue holds %d and %d", info.NumPending, info.NumAckPending)
	}
	for _, f := range forwarders {
		// One of them may be late to look.
		eventually(t, patience, "each knows that it is paused, and does not count it as vacant", func() bool {
			_, paused := f.Status().Paused["ingress"].Of(1)
			f.vacant.mu.Lock()
			defer f.vacant.mu.Unlock()
			_, vacant := f.vacant.since[SinkLane{"ingress", 1}]
			return paused && !vacant
		})
		status := f.Status()
		if p, ok := status.Paused["ingress"].Of(1); !ok || p.Reason != "maintenance" || len(status.Vacant) > 0 {
			t.Errorf("%s: %+v", status.ID, status)
		}
		err := f.Problems()
		if err == nil || !strings.Contains(err.Error(), "lane 1 of ingress is paused since ") || !strings.Contains(err.Error(), "(maintenance); `waybill lanes resume --sink ingress --lane 1`") || strings.Contains(err.Error(), "no forwarder") {
			t.Errorf("%s: problems: %v", status.ID, err)
		}
		if err := f.Ready(); err != nil {
			t.Errorf("%s: ready: %v", status.ID, err)
		}
	}
	if _, err := ResumeLanes(t.Context(), s.queue, "ingress", []int{1}); err != nil {
		t.Fatal(err)
	}
	s.mustSettle(t, patience)
	for _, r := range []*recorder{ingress, archive} {
		mustBeSentOnce(t, s, r)
		mustBeInOrder(t, r)
	}
	eventually(t, patience, "nothing is wrong", func() bool { return forwarders[0].Problems() == nil && forwarders[1].Problems() == nil })
}

// What is in flight when a sink is paused is seen through to its receipt and is not sent again. One
// that starts while it is paused takes nothing.
func TestPausedSinkEndsWhatIsInFlight(t *testing.T) {
	s := mustSite(t, 2, "ingress")
	ingress := newRecorder("ingress")
	release := make(chan struct{})
	ingress.set(hang(release))
	f, _ := s.mustForwarder(t, s.queue, "a", func(c *ForwarderConfig) { c.StopTimeout = patience }, ingress)
	s.mustSend(t, 1)
	eventually(t, patience, "both lanes send", func() bool { return len(ingress.calls()) == 2 })
	if _, err := PauseLanes(t.Context(), s.queue, "ingress", nil, ""); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "it is seen", func() bool {
		err := f.Problems()
		return err != nil && strings.Contains(err.Error(), "sink ingress is paused since ")
	})
	close(release)
	eventually(t, patience, "both lanes are given up", func() bool { return len(sortedHolders(t, s, "ingress")) == 0 })
	s.mustSettle(t, patience)
	late, _ := mustQueue(t, s.nats)
	other, _ := s.mustForwarder(t, late, "b", nil, ingress)
	s.mustSend(t, 3)
	eventually(t, patience, "the other one sees it", func() bool { return other.Problems() != nil && len(other.Status().Paused) == 1 })
	if n := len(ingress.calls()); n != 2 {
		t.Errorf("%d requests were sent while it is paused", n-2)
	}
	if _, err := ResumeLanes(t.Context(), s.queue, "ingress", nil); err != nil {
		t.Fatal(err)
	}
	s.mustSettle(t, patience)
	mustBeSentOnce(t, s, ingress)
}

// The word is lost with JetStream's store, and an older pipeline has no bucket for it: then the lanes
// go on.
func TestLostPausesLetTheLanesGoOn(t *testing.T) {
	s := mustSite(t, 2, "ingress")
	ingress := newRecorder("ingress")
	if _, err := PauseLanes(t.Context(), s.queue, "ingress", nil, ""); err != nil {
		t.Fatal(err)
	}
	f, _ := s.mustForwarder(t, s.queue, "a", nil, ingress)
	eventually(t, patience, "it is seen", func() bool { return len(f.Status().Paused) == 1 })
	if err := s.queue.js.DeleteKeyValue(t.Context(), pausesBucket); err != nil {
		t.Fatal(err)
	}
	if err := s.queue.Check(t.Context(), 2, 0); err != nil {
		t.Errorf("the queue does not fit without the bucket: %v", err)
	}
	if _, err := PauseLanes(t.Context(), s.queue, "ingress", nil, ""); err == nil || !strings.Contains(err.Error(), "waybill migrate") {
		t.Errorf("it cannot be paused now, and the error is %v", err)
	}
	s.mustSend(t, 2)
	s.mustSettle(t, patience)
}

func TestPausesAreChanged(t *testing.T) {
	s := mustSite(t, 1, "ingress")
	ctx := t.Context()
	lanesOf := func(p SinkPauses) string { return fmt.Sprint(p.All != nil, slices.Sorted(maps.Keys(p.Lanes))) }
	for i, step := range []struct {
		resume bool
		lanes  []int
		want   string // empty: refused
	}{
		{false, []int{3, 1}, "false [1 3]"},
		{false, []int{1, 2}, "false [1 2 3]"},
		{true, []int{3, 9}, "false [1 2]"},
		{false, nil, "true []"},
		{false, []int{5}, "true []"},
		{true, []int{5}, ""},
		{true, nil, "false []"},
		{true, nil, "false []"},
	} {
		change := func() (SinkPauses, error) { return PauseLanes(ctx, s.queue, "ingress", step.lanes, fmt.Sprint(i)) }
		if step.resume {
			change = func() (SinkPauses, error) { return ResumeLanes(ctx, s.queue, "ingress", step.lanes) }
		}
		now, err := change()
		if (err == nil) != (step.want != "") || err == nil && lanesOf(now) != step.want {
			t.Errorf("step %d: %s, %v; want %s", i, lanesOf(now), err, step.want)
		}
		if p, ok := now.Lanes[1]; ok && p.Reason != "0" {
			t.Errorf("step %d: lane 1 was paused first in step 0 and says %q", i, p.Reason)
		}
	}
	if all, err := PausesOf(ctx, s.queue, []string{"ingress", "other"}); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
	if _, err := PauseLanes(ctx, s.queue, "In.gress", nil, ""); err == nil {
		t.Error("a name that is none is taken")
	}
	// Operators at the same time lose nothing of each other's.
	var wg sync.WaitGroup
	for lane := range 4 {
		wg.Go(func() {
			if _, err := PauseLanes(ctx, s.queue, "ingress", []int{lane}, ""); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	all, err := PausesOf(ctx, s.queue, []string{"ingress"})
	if err != nil || lanesOf(all["ingress"]) != "false [0 1 2 3]" {
		t.Errorf("%v, %v", all, err)
	}
}

func TestPausesThatCannotBeReadAreOverwritten(t *testing.T) {
	s := mustSite(t, 1, "ingress")
	kv, err := s.queue.js.KeyValue(t.Context(), pausesBucket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.Put(t.Context(), "ingress", []byte(`{"lanes":{"3":{"since":"2026-11-30T00:00:00Z"}},"all":17}`)); err != nil {
		t.Fatal(err)
	}
	now, err := PauseLanes(t.Context(), s.queue, "ingress", []int{1}, "")
	if err != nil || now.All != nil || len(now.Lanes) != 1 || now.Lanes[1].Since.IsZero() {
		t.Errorf("%+v, %v; want lane 1 and nothing of what could not be read", now, err)
	}
}
