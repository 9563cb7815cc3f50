package pipeline

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

// tenure is the time for which this forwarder has a lane of a sink: its lease, and its
// worker.
type tenure struct {
	place  SinkLane
	lease  *lease
	worker *worker
	work   func(context.Context) // the worker's run
	stop   time.Duration         // how long after drain the worker may go on
	log    *slog.Logger

	once  sync.Once
	drain chan struct{} // closed when the lane is to be given up
}

// giveUp makes run return soon. It may be called more than once.
func (t *tenure) giveUp() { t.once.Do(func() { close(t.drain) }) }

// run works on the lane until it is given up or lost, and releases it. ctx is no way to
// stop it in good order: it ends everything at once.
func (t *tenure) run(ctx context.Context) {
	work, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var keeper sync.WaitGroup
	keeping, stopKeeping := context.WithCancel(ctx)
	keeper.Go(func() {
		if err := t.lease.keep(keeping); err != nil {
			t.log.Warn("lane is lost", "error", err)
			cancel(err)
		}
	})
	keeper.Go(func() { t.limit(keeping, cancel) })
	t.work(work)
	stopKeeping()
	keeper.Wait()
	t.release(context.WithoutCancel(ctx))
}

var errOutOfTime = errors.New("the request in flight took longer than the time allowed for a stop")

// limit ends a worker that goes on for too long after the drain.
func (t *tenure) limit(ctx context.Context, cancel context.CancelCauseFunc) {
	select {
	case <-t.drain:
	case <-ctx.Done():
		return
	}
	pause(ctx, t.stop)
	if ctx.Err() == nil {
		cancel(errOutOfTime)
	}
}

func (t *tenure) release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, goodbyeTimeout)
	defer cancel()
	if err := t.lease.release(ctx); err != nil {
		t.log.Warn("lane is not released; it expires", "error", err)
	}
}
