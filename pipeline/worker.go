package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// errDraining means that a worker is to stop: nothing new is begun.
var errDraining = errors.New("the lane is being given up")

// consumerTimeout bounds the reset of a consumer.
const consumerTimeout = 5 * time.Second

// worker feeds one sink from one lane, one request after another, for as long as the lane
// is leased.
type worker struct {
	cfg      *ForwarderConfig
	js       jetstream.JetStream
	log      *slog.Logger
	lane     int
	lease    *lease
	out      *outlet
	known    *delivered
	receipts *receipter
	status   *workerStatus
	drain    <-chan struct{} // closed when the worker is to stop
	puller   *puller         // of the session
}

// run works until ctx ends, because the lease is lost or time is up, or drain is closed
// and the request in flight is done with. Whatever goes wrong with the consumer leads to a
// new session, which begins as the first one did.
func (w *worker) run(ctx context.Context) {
	pauses := newBackoff(50*time.Millisecond, 2*time.Second)
	for {
		began := time.Now()
		err := w.session(ctx)
		if ctx.Err() != nil || errors.Is(err, errDraining) {
			return
		}
		w.out.metrics.reset(resetReason(err))
		if w.status.note(err) {
			w.log.Info("consumer is started over", "error", err)
		}
		if time.Since(began) > time.Minute {
			pauses.Reset()
		}
		if !w.rest(ctx, pauses.NextBackOff()) {
			return
		}
	}
}

// rest pauses and says whether the worker goes on.
func (w *worker) rest(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-w.drain:
	case <-ctx.Done():
	}
	return false
}

// session resets the consumer and works on it until something is wrong with it.
//
// The lease is renewed before every reset: a forwarder that has lost its lane but does not
// know it must not rewind the new owner's consumer, and two could take turns at it for ever.
func (w *worker) session(ctx context.Context) error {
	p := newPuller(w.js, w.out.sink.Name(), w.lane, w.cfg.PrefetchMessages, w.prefetch, w.lease.ttl/3)
	p.answered = func() { w.status.note(nil) }
	p.took = w.out.metrics.queue.took
	w.puller = p
	w.status.reads(p)
	defer w.status.reads(nil)
	if err := p.open(); err != nil {
		return err
	}
	reading, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer func() {
		stop()
		wg.Wait()
		p.close()
	}()
	if err := w.lease.renew(ctx); err != nil {
		return err
	}
	if err := w.resetConsumer(ctx, p.name); err != nil {
		return err
	}
	wg.Go(func() { p.run(reading) })
	wg.Go(func() { p.check(reading, w.cfg.CheckEvery) })
	for {
		if err := w.step(ctx); err != nil {
			return err
		}
	}
}

// prefetch is how many bytes may be held beyond the request in hand.
func (w *worker) prefetch() int { return min(w.cfg.PrefetchBytes, w.out.share()/2) }

func (w *worker) resetConsumer(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, consumerTimeout)
	defer cancel()
	// It is the consumer itself that answers a reset: a missing one shows as silence only.
	_, err := w.js.Consumer(ctx, EventsStream, name)
	if errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) {
		return fmt.Errorf("consumer %s does not exist; a janitor creates it: %w", name, err)
	}
	if err != nil {
		return fmt.Errorf("look up consumer %s: %w", name, err)
	}
	if _, err = w.js.ResetConsumer(ctx, EventsStream, name); err != nil {
		return fmt.Errorf("reset consumer %s (nats-server 2.14 or newer is needed): %w", name, err)
	}
	return nil
}

// step makes one request of what the lane holds, and sees it through to the acks.
func (w *worker) step(ctx context.Context) error {
	defer w.status.idle()
	var r request
	if err := w.gather(ctx, &r); err != nil {
		return err
	}
	err := w.deliver(ctx, &r)
	w.out.metrics.queue.processed(r.held[0].arrived, err, queueErrorType)
	if err != nil {
		return err
	}
	for _, h := range r.held {
		if err := w.puller.ack(h, ackBody); err != nil {
			return err
		}
	}
	return nil
}

// gather waits for a first batch and merges what joins it: until the request is full or
// the linger, from the first batch's arrival, is over.
func (w *worker) gather(ctx context.Context, r *request) error {
	var linger <-chan time.Time
	for {
		if err := w.stopped(ctx); err != nil {
			return err
		}
		full, err := w.fill(r)
		if err != nil || full {
			return err
		}
		if linger == nil && len(r.held) > 0 {
			wait := time.Until(r.held[0].arrived.Add(w.out.limits.Linger))
			if wait <= 0 || len(r.items) == 0 {
				return nil
			}
			timer := time.NewTimer(wait)
			defer timer.Stop()
			linger = timer.C
		}
		select {
		case <-w.puller.more:
		case <-linger:
			return nil
		case <-w.puller.failed:
		case <-w.drain:
		case <-ctx.Done():
		}
	}
}

// stopped returns why nothing new may be begun, or nil. What is buffered is dropped then:
// it comes again.
func (w *worker) stopped(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-w.drain:
		return errDraining
	case <-w.puller.failed:
		return w.puller.failure()
	default:
		return nil
	}
}

// fill moves into the request what is there and fits. What needs no delivery is answered
// on the way.
func (w *worker) fill(r *request) (full bool, err error) {
	limits, most := w.out.limits, w.out.share()/2
	for !r.full(limits, most) {
		h, ok := w.puller.peek()
		if !ok {
			return false, nil
		}
		switch w.treat(h) {
		case sendIt:
			if !r.fits(h, limits, most) {
				return true, nil
			}
			r.add(h, true)
			w.cfg.Tracing.took(r)
			w.status.holds(h.batch, r.memory)
		case receiptIt:
			r.add(h, false)
		case ackIt:
			err = w.puller.ack(h, ackBody)
		case terminate:
			err = w.puller.ack(h, termBody)
		}
		if err != nil {
			return false, err
		}
		w.puller.pop()
	}
	return true, nil
}

// treat decides what to do with a message, and counts what is not sent.
func (w *worker) treat(h held) treatment {
	b, m := h.batch, w.out.metrics
	switch {
	case b == nil:
		m.corrupt.Add(context.Background(), 1, m.sink)
		w.log.Error("a message in the queue is corrupt and is dropped from it; its batch is in Postgres and comes again", "stream_sequence", h.seq, "error", h.err)
		return terminate
	case !b.For(w.out.sink.Name()):
		m.skip("for other sinks")
		return ackIt
	}
	t := w.known.treat(b)
	switch {
	case t != sendIt: // also if it has expired since: without a receipt it would be a dead letter
		m.skip("delivered before")
	case !b.ExpiresAt.IsZero() && time.Now().After(b.ExpiresAt.Add(w.cfg.ExpiryMargin)):
		m.skip("expired")
		return ackIt
	}
	return t
}

// resetReason names the end of a session in a metric.
func resetReason(err error) string {
	for reason, is := range map[string]error{
		"gap": errGap, "redelivery": errRedelivered, "foreign reset": errForeignReset,
		"unheld": errUnheld, "disconnected": errDisconnected, "silence": errSilent,
		"no consumer": jetstream.ErrConsumerNotFound, "no stream": jetstream.ErrStreamNotFound,
	} {
		if errors.Is(err, is) {
			return reason
		}
	}
	return "other"
}
