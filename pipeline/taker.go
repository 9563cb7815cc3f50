package pipeline

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.opentelemetry.io/otel/metric"
)

const (
	// outboxShards is the number of shards of waybill.outbox, by which takers share it out.
	outboxShards = 16
	// outboxRows and outboxBytes bound what one unit takes. Two are held at once: one is committed while
	// the next is read.
	outboxRows  = 2048
	outboxBytes = 4 << 20

	// takerMinPause and takerMaxPause are between tries of a taker that fails.
	takerMinPause = 100 * time.Millisecond
	takerMaxPause = 2 * time.Second
	// roomPause is between looks whether there is room again for what waits in the outbox.
	roomPause = 50 * time.Millisecond
)

// taker takes committed events out of the outbox and submits them to its ingester. There is one unit
// under way at a time, which holds all that was read, in order; where it fails, all is read anew from
// there on. So events of one session keep their order, whatever happens.
//
// Each row becomes one event because the transaction that stores the event deletes the row, or is taken back.
// That does not depend on who reads what: any number of takers may read the same rows.
type taker struct {
	in      *Ingester
	store   *Store
	reader  outboxReader
	metrics *takerMetrics
	most    outboxLimits

	mu      sync.Mutex // guards what follows
	failing error      // why it takes nothing; nil: it does
	since   time.Time
	held    int // shards
	rows    int // in hand
}

func newTaker(in *Ingester, meter metric.Meter) (*taker, error) {
	t := &taker{
		in: in, store: in.store, reader: outboxReader{cfg: in.cfg.Outbox},
		most: outboxLimits{rows: min(outboxRows, in.cfg.FlushEvents), bytes: min(outboxBytes, in.cfg.FlushBytes)},
	}
	var err error
	t.metrics, err = newTakerMetrics(meter, t)
	return t, err
}

// run takes until ctx ends, and returns when what it submitted is answered, and published, if that is before stop ends.
func (t *taker) run(ctx, stop context.Context) {
	for wait := takerMinPause; ctx.Err() == nil; wait = min(2*wait, takerMaxPause) {
		took, err := t.session(ctx, stop)
		if ctx.Err() != nil {
			return
		}
		switch {
		case errors.Is(err, errGivesUp): // for longer than others take to look at what is free
			wait = takerMaxPause
		case took:
			wait = takerMinPause
		}
		t.note(err)
		pause(ctx, wait)
	}
}

// session takes with one connection until it fails or ctx ends. took: it had shards.
func (t *taker) session(ctx, stop context.Context) (took bool, err error) {
	connecting, cancel := context.WithTimeout(ctx, t.in.cfg.FlushTimeout)
	defer cancel()
	conn, err := t.store.connectOutbox(connecting, t.in.cfg.FlushTimeout/2)
	if err != nil {
		return false, err
	}
	s := &takerSession{taker: t, conn: conn, active: time.Now()}
	err = s.take(ctx)
	s.land()
	if !conn.IsClosed() {
		s.published(stop)
	}
	closing, cancelClose := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancelClose()
	if err == nil {
		_ = s.sayOf(closing, s.shards, false) // a hint
	}
	_ = conn.Close(closing) // its locks end with it, now or when the server notices
	t.show(0, 0)
	return len(s.shards) > 0, err
}

// note keeps the state of the taker and logs its changes.
func (t *taker) note(err error) {
	t.mu.Lock()
	before := t.failing
	t.failing = err
	if err != nil && before == nil {
		t.since = time.Now()
	}
	since := t.since
	t.mu.Unlock()
	switch {
	case err != nil && before == nil:
		t.in.log.Warn("nothing is taken out of the outbox", "error", err)
	case err == nil && before != nil:
		t.in.log.Info("events are taken out of the outbox again", "after", time.Since(since).Round(time.Millisecond).String())
	}
}

// show makes its state known to the metrics.
func (t *taker) show(shards, rows int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.held, t.rows = shards, rows
}

// state returns how many shards it has and how many rows in hand.
func (t *taker) state() (shards, rows int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.held, t.rows
}

// OutboxProblem says why nothing is taken out of the outbox and since when, or is nil.
func (in *Ingester) OutboxProblem() error {
	if in.taker == nil {
		return nil
	}
	in.taker.mu.Lock()
	defer in.taker.mu.Unlock()
	if in.taker.failing == nil {
		return nil
	}
	return fmt.Errorf("nothing is taken out of the outbox since %s: %w", in.taker.since.UTC().Format(time.RFC3339), in.taker.failing)
}

// room reports why rows of the outbox are to wait, or nil.
func (in *Ingester) room() error {
	in.mu.Lock()
	events, bytes, stopped := in.queuedEvents, in.queuedBytes, in.stopped
	in.mu.Unlock()
	if stopped {
		return fmt.Errorf("%w: this process is stopping", ErrUnavailable)
	}
	return in.backlog.check(int64(events), int64(bytes))
}
