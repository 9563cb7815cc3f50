package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/waybillhq/waybill/internal/producer"
)

const (
	// eventType is the type of each event; the source says of which workflow it is.
	eventType = "cre.workflow.tick"
	// inFlight bounds the events of a workflow that are not answered yet. Beyond it the
	// workflow is late, and says so.
	inFlight = 256
	// patience is how long an event is sent again that is not accepted.
	patience = 30 * time.Second
)

// workflow emits an event whenever its clock says so: at fixed times, as a cron trigger fires,
// whatever became of the events before.
type workflow struct {
	source   string
	interval time.Duration
	sender   producer.Sender
}

// workflows returns n of them. run is part of their sources, which begin with sourceOf(run).
func workflows(run string, n int, interval time.Duration, senders [2]producer.Sender) []workflow {
	out := make([]workflow, n)
	for i := range out {
		out[i] = workflow{source: fmt.Sprintf("%sworkflow-%02d", sourceOf(run), i+1), interval: interval, sender: senders[i%len(senders)]}
	}
	return out
}

func sourceOf(run string) string { return "/cre/" + run + "/" }

// run emits from began until until, and waits for the answers. At began it emits the first.
func (w workflow) run(ctx context.Context, began, until time.Time, tally *tally) {
	var calls sync.WaitGroup
	defer calls.Wait()
	room := make(chan struct{}, inFlight)
	end := time.NewTimer(time.Until(until))
	defer end.Stop()
	for n := 0; ; n++ {
		due := began.Add(time.Duration(n) * w.interval)
		if !due.Before(until) || !sleepUntil(ctx, due) {
			return
		}
		select {
		case room <- struct{}{}:
		case <-end.C:
			return
		case <-ctx.Done():
			return
		}
		tally.emits(time.Since(due))
		calls.Go(func() {
			defer func() { <-room }()
			w.emit(ctx, n, due, tally)
		})
	}
}

// emit sends the nth event, from 0.
func (w workflow) emit(ctx context.Context, n int, due time.Time, tally *tally) {
	began := time.Now()
	outcome := producer.SendUntil(ctx, w.sender, []*pb.CloudEvent{w.event(n, due)}, patience, nil)[0]
	tally.answered(outcome.Err, time.Since(began))
}

func (w workflow) event(n int, due time.Time) *pb.CloudEvent {
	text := func(s string) *pb.CloudEventAttributeValue {
		return &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeString{CeString: s}}
	}
	return &pb.CloudEvent{
		Id: fmt.Sprintf("%d", n+1), Source: w.source, SpecVersion: "1.0", Type: eventType,
		Attributes: map[string]*pb.CloudEventAttributeValue{
			"datacontenttype": text("application/json"),
			"time":            {Attr: &pb.CloudEventAttributeValue_CeTimestamp{CeTimestamp: timestamppb.New(due)}},
		},
		Data: &pb.CloudEvent_BinaryData{BinaryData: fmt.Appendf(nil, `{"execution":%d,"trigger":"cron","status":"completed"}`, n+1)},
	}
}

// ticks is how many events a workflow emits in a time, if it is never late.
func ticks(length, interval time.Duration) int64 {
	return int64((length + interval - 1) / interval)
}

// sleepUntil reports whether ctx lives at a time.
func sleepUntil(ctx context.Context, t time.Time) bool {
	left := time.Until(t)
	if left <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// tally counts what became of the events of all workflows.
type tally struct {
	mu                sync.Mutex // guards all below
	emitted, accepted int64
	latest            time.Duration           // most that an event was emitted after its time
	took              *hdrhistogram.Histogram // microseconds until an event was accepted
	failed            int64
	failure           error // of the first that failed
}

func newTally() *tally {
	return &tally{took: hdrhistogram.New(1, time.Hour.Microseconds(), 3)}
}

func (t *tally) emits(late time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.emitted++
	t.latest = max(t.latest, late)
}

func (t *tally) answered(err error, took time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		if t.failed++; t.failure == nil {
			t.failure = err
		}
		return
	}
	t.accepted++
	_ = t.took.RecordValue(max(took.Microseconds(), 1)) // no answer takes an hour
}

func (t *tally) counts() (emitted, accepted int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.emitted, t.accepted
}

// quantile is the time within which that part of the accepted events, in percent, was accepted.
func (t *tally) quantile(percent float64) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return time.Duration(t.took.ValueAtQuantile(percent)) * time.Microsecond
}

// problem says that events were not accepted; nil: all were.
func (t *tally) problem() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.failed > 0:
		return fmt.Errorf("%d of %d events were not accepted; the first: %w", t.failed, t.emitted, t.failure)
	case t.accepted != t.emitted:
		return fmt.Errorf("%d of %d events were accepted", t.accepted, t.emitted)
	}
	return nil
}
