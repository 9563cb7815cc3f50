package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

var errSeenAll = errors.New("seen all")

// tailed reads until n events have come and returns their batches in order.
func (r *rig) tailed(t testing.TB, start TailStart, n int) (all []TailedBatch) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := r.queue.Tail(ctx, start, nil, func(b TailedBatch) error {
		all = append(all, b)
		n -= len(b.Events)
		if n <= 0 {
			return errSeenAll
		}
		return nil
	})
	if !errors.Is(err, errSeenAll) {
		t.Fatalf("%v; %d events are missing", err, n)
	}
	return all
}

// A tail sees each batch in queue order, from the time asked for or from now on, of the lanes asked for;
// what is corrupt is passed over; and it moves nothing of the live path.
func TestTail(t *testing.T) {
	r := mustPatientRig(t)
	r.mustJanitor(t, func(c *JanitorConfig) { c.ReplayWindow = time.Hour })
	eventually(t, patience, "consumers exist", func() bool {
		f, err := r.queue.readFloors(t.Context())
		return err == nil && len(f.byName) == len(testSpec.Sinks)*testSpec.Lanes
	})
	for i := range 20 {
		r.mustAccept(t, mustEvent(t, fmt.Sprintf("/source/%d", i), "t", fmt.Sprint(i)))
	}
	if _, err := r.queue.js.PublishMsg(t.Context(), &nats.Msg{Subject: eventSubject(0), Data: []byte("corrupt")}); err != nil {
		t.Fatal(err)
	}
	r.awaitQueued(t, 21)
	before := r.liveState(t)
	all := r.tailed(t, TailStart{Since: time.Now().Add(-time.Hour)}, 20)
	last := uint64(0)
	for _, b := range all {
		if b.Seq <= last || b.Stored.IsZero() || b.Attempt != 0 {
			t.Errorf("%+v", b)
		}
		last = b.Seq
	}
	lane := all[0].Lane
	for _, b := range r.tailed(t, TailStart{Since: time.Now().Add(-time.Hour), Lanes: []int{lane}}, 1) {
		if b.Lane != lane {
			t.Errorf("lane %d was read, and not asked for", b.Lane)
		}
	}
	ready := make(chan struct{})
	seen := make(chan TailedBatch)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- r.queue.Tail(ctx, TailStart{}, func() { close(ready) }, func(b TailedBatch) error { seen <- b; return nil })
	}()
	<-ready
	if after := r.liveState(t); after != before {
		t.Errorf("live state was\n%s\nand is\n%s", before, after)
	}
	r.mustAccept(t, laneEvent(t, "new"))
	select {
	case b := <-seen:
		if b.Seq <= last {
			t.Errorf("it begins with what was there: %+v", b)
		}
	case <-time.After(patience):
		t.Error("it does not see what is new")
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// A batch waits for the sinks without a receipt, and what was refused is a dead letter of that sink alone,
// in the same moment.
func TestWaitsForAndRefused(t *testing.T) {
	s := mustStore(t)
	events := mustEvents(t, 3, 1)
	mustAddKeys(t, s, events)
	stored, err := s.Append(t.Context(), events, time.Hour, 1<<20)
	if err != nil || len(stored.IDs()) != 1 {
		t.Fatal(stored, err)
	}
	id := stored.IDs()[0]
	foreign := BatchID{id.Number, id.Token + 1}
	waits, err := s.WaitsFor(t.Context(), []BatchID{id})
	if err != nil || len(waits[id]) != len(testSpec.Sinks) {
		t.Errorf("%v, %v", waits, err)
	}
	if waits, err := s.WaitsFor(t.Context(), []BatchID{foreign}); err != nil || len(waits) != 0 {
		t.Errorf("another batch of that number waits: %v, %v", waits, err)
	}
	sink := testSpec.Sinks[0]
	receipt := Receipt{Sink: sink, Batches: []BatchReceipt{{ID: id, Refused: []Refusal{{Index: 1, Code: "BAD", Reason: "no"}}}}}
	if _, err := s.Settle(t.Context(), []Receipt{receipt}); err != nil {
		t.Fatal(err)
	}
	if waits, err = s.WaitsFor(t.Context(), []BatchID{id}); err != nil || len(waits[id]) != len(testSpec.Sinks)-1 || slices.Contains(waits[id], sink) {
		t.Errorf("%v, %v", waits, err)
	}
	refused, err := s.Refused(t.Context(), []BatchID{id})
	if err != nil || len(refused) != 1 || !slices.Equal(refused[Position(id.Number, 1)], []string{sink}) {
		t.Errorf("%v, %v", refused, err)
	}
	if refused, err := s.Refused(t.Context(), []BatchID{foreign}); err != nil || len(refused) != 0 {
		t.Errorf("dead letters of another batch: %v, %v", refused, err)
	}
}
