package main

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"

	"github.com/waybillhq/waybill/internal/producer"
)

// taker answers each call with err, after hold.
type taker struct {
	mu     sync.Mutex
	events []*pb.CloudEvent
	err    error
	hold   time.Duration
}

func (k *taker) Send(_ context.Context, events []*pb.CloudEvent) []error {
	time.Sleep(k.hold)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.events = append(k.events, events...)
	return []error{k.err}
}

func TestWorkflowKeepsItsTimes(t *testing.T) {
	// Slower than the interval: a cron trigger does not wait for the event before.
	taken := &taker{hold: 50 * time.Millisecond}
	flow := workflows("run", 1, 10*time.Millisecond, [2]producer.Sender{taken, taken})[0]
	tally, began := newTally(), time.Now()
	flow.run(t.Context(), began, began.Add(200*time.Millisecond), tally)
	want := ticks(200*time.Millisecond, flow.interval)
	if err := tally.problem(); err != nil || tally.emitted != want || int64(len(taken.events)) != want {
		t.Errorf("%d events of %d: %v", tally.emitted, want, err)
	}
	ids := map[string]bool{}
	for _, e := range taken.events {
		ids[e.Id] = true
		if e.Source != "/cre/run/workflow-01" || e.Type != eventType {
			t.Errorf("%v", e)
		}
	}
	if int64(len(ids)) != want {
		t.Errorf("%d ids of %d events", len(ids), want)
	}
}

func TestRefusedEventsAreTold(t *testing.T) {
	taken := &taker{err: &producer.RefusedError{Reason: "no"}}
	flow := workflows("run", 1, 10*time.Millisecond, [2]producer.Sender{taken, taken})[0]
	tally, began := newTally(), time.Now()
	flow.run(t.Context(), began, began.Add(30*time.Millisecond), tally)
	var refused *producer.RefusedError
	if err := tally.problem(); !errors.As(err, &refused) || !strings.Contains(err.Error(), "3 of 3") {
		t.Error(err)
	}
}

func TestTicks(t *testing.T) {
	for _, c := range []struct {
		length, interval time.Duration
		want             int64
	}{{time.Second, time.Second, 1}, {1001 * time.Millisecond, time.Second, 2}, {10 * time.Second, 3 * time.Second, 4}} {
		if got := ticks(c.length, c.interval); got != c.want {
			t.Errorf("%v every %v: %d, want %d", c.length, c.interval, got, c.want)
		}
	}
}
