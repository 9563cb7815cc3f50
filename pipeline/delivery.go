package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/waybillhq/waybill/pipeline/failpoint"
)

// errMismatch means that a sink broke its contract; nothing it said is believed.
var errMismatch = errors.New("the sink returned a result for other than each item")

// deliver sends a request until every event has a final result, and stores its receipt.
// An error means that the messages are not to be acked: they come again.
func (w *worker) deliver(ctx context.Context, r *request) error {
	defer w.cfg.Tracing.processed(w.out.sink.Name(), w.lane, r)
	pauses := newBackoff(w.cfg.BackoffMin, w.cfg.BackoffMax)
	var pending []int
	for first := true; len(r.items) > 0; first = false {
		changed := w.out.breaker.change() // what comes during the try ends the pause after it
		again, err := w.try(ctx, r, pending, first)
		if err != nil {
			return err
		}
		if len(again) == 0 {
			break
		}
		if len(again) < len(pending) {
			pauses.Reset() // the destination takes some, and soon the others perhaps
		}
		pending = again
		if err := w.backOff(ctx, pauses.NextBackOff(), changed); err != nil {
			return err
		}
	}
	if err := w.receipts.store(ctx, w.out.sink.Name(), w.lane, r.receipts(), w.receiptTried); err != nil {
		return err
	}
	w.out.metrics.receipts.Add(ctx, int64(len(r.held)), w.out.metrics.sink)
	for _, h := range r.held {
		w.known.receipted(h.batch.ID)
	}
	return nil
}

// receiptTried takes note of how an attempt to store the receipt went.
func (w *worker) receiptTried(err error) {
	if err != nil {
		w.out.metrics.receiptFail.Add(context.Background(), 1, w.out.metrics.sink)
	}
	w.status.receipt(err)
}

// try waits for its turn and sends the pending items once; it returns those to be tried
// again. The first try takes along what arrived during the wait.
func (w *worker) try(ctx context.Context, r *request, pending []int, first bool) (again []int, err error) {
	probe, err := w.admit(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { <-w.out.slots }()
	if first {
		if _, err := w.fill(r); err != nil {
			w.out.breaker.abandoned(probe)
			return nil, err
		}
		pending = r.all()
	}
	// A process that was paused may find that its lane has long been another's.
	if err := w.lease.valid(); err != nil {
		w.out.breaker.abandoned(probe)
		return nil, err
	}
	results, err := w.send(ctx, r, pending)
	switch {
	case err != nil && ctx.Err() != nil:
		w.out.breaker.abandoned(probe)
		return nil, fmt.Errorf("send: %w", context.Cause(ctx))
	case err != nil:
		w.out.breaker.failed(probe, err)
		w.status.send(err)
		return pending, nil
	}
	// Also when it took nothing: a lane that is stuck on an event must not stop the others.
	w.out.breaker.succeeded()
	again, done := r.resolve(pending, results)
	failpoint.Hit("forwarder/before-remember")
	w.remember(r, done)
	failpoint.Hit("forwarder/after-remember")
	if len(again) == len(pending) {
		err = fmt.Errorf("no event was taken: %s", results[0].Reason)
	}
	w.status.send(err)
	return again, nil
}

// admit waits until the breaker lets a request pass and one of the sink's slots is free.
func (w *worker) admit(ctx context.Context) (probe bool, err error) {
	probe, err = w.out.breaker.enter(ctx, w.drain)
	if err != nil {
		return false, err
	}
	select {
	case w.out.slots <- struct{}{}:
		select {
		case <-w.drain:
			<-w.out.slots
			err = errDraining
		default:
			return probe, nil
		}
	case <-w.drain:
		err = errDraining
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	w.out.breaker.abandoned(probe)
	return false, err
}

// send calls the sink. A panic of a sink is not caught: what it did is unknown, and the
// process's end leaves everything to redelivery.
func (w *worker) send(ctx context.Context, r *request, pending []int) ([]Result, error) {
	items := r.subset(pending)
	bytes := r.bytes
	if len(items) < len(r.items) {
		bytes = 0
		for _, i := range items {
			bytes += len(i.Encoded())
		}
	}
	start := time.Now()
	results, err := w.out.sink.Send(ctx, w.lane, items)
	status := "ok"
	switch {
	case err != nil:
		status = "failed"
	case len(results) != len(items):
		status, err = "mismatched", fmt.Errorf("%w: %d results for %d", errMismatch, len(results), len(items))
	default:
		for _, result := range results {
			if result.Verdict == Retry {
				status = "partial"
				break
			}
		}
	}
	w.out.metrics.sent(status, time.Since(start), len(items), bytes)
	w.cfg.Tracing.sent(w.out.sink.Name(), r, pending, start, results, err)
	return results, err
}

// remember takes note of the batches that the sink is done with, before their receipt: if
// that does not get through, they come again, and are not sent again.
func (w *worker) remember(r *request, done []int) {
	for _, at := range done {
		b, refused := r.held[at].batch, r.batches[at].refused
		w.known.add(b.ID, delivery{attempt: int32(b.Attempt), refusals: len(refused) > 0})
		w.out.metrics.resolved(b, refused, w.known.keys)
	}
}

// backOff pauses between tries. A change of the breaker ends the pause: either the
// destination works again, or the breaker is the one to wait for.
func (w *worker) backOff(ctx context.Context, d time.Duration, changed <-chan struct{}) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-changed:
		return nil
	case <-w.drain:
		return errDraining
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
