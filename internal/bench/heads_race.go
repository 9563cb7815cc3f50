package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/waybillhq/waybill/pipeline"
)

const (
	// headBatchBytes bounds a message, as ingest does unless it is set otherwise.
	headBatchBytes = 1 << 20
	// waitersEvery is how often the sessions that wait for a lock are counted.
	waitersEvery = 10 * time.Millisecond
)

// headRace is some writers that append to one database, each on a connection of its own as
// ingests have, one flush after another.
type headRace struct {
	load    Load // Callers are the writers
	url     string
	ledger  *ledger
	events  *storeEvents
	latency *latencies // of the flushes of the window
	// Of the window: flushes that were committed, and those that Postgres refused or left open.
	flushes, failed atomic.Int64
	// Sums over looks: how many writers waited for a lock, and the looks.
	waiting, looks int64
	deadlocks      int64
	seconds        float64 // of the window
}

func newHeadRace(load Load, url string) (*headRace, error) {
	l := newLedger(time.Now())
	events, err := newStoreEvents(l, load)
	return &headRace{load: load, url: url, ledger: l, events: events, latency: newLatencies()}, err
}

// run lets the writers warm up and race.
func (r *headRace) run(ctx context.Context) error {
	stores := make([]*pipeline.Store, r.load.Callers)
	for i := range stores {
		c := pipeline.DefaultStoreConfig(r.url)
		c.MaxConns, c.KeepPlans = 1, true // as ingest keeps them
		var err error
		if stores[i], err = pipeline.OpenStore(ctx, c, pipeline.DefaultLanes); err != nil {
			return err
		}
		defer stores[i].Close()
	}
	conn, err := connectTo(ctx, r.url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }() // it only reads from here on
	if err := r.events.makeHeads(ctx, conn); err != nil {
		return err
	}
	began := time.Now().Add(r.load.WarmUp)
	end := began.Add(r.load.For)
	group, racing := errgroup.WithContext(ctx)
	for i, store := range stores {
		group.Go(func() error { return r.write(racing, i, store, began, end) })
	}
	group.Go(func() error { return r.watch(racing, conn, began, end) })
	if err := group.Wait(); err != nil {
		return err
	}
	r.seconds = r.load.For.Seconds()
	for _, store := range stores {
		store.Close()
	}
	if err := awaitSessions(ctx, conn); err != nil {
		return err
	}
	return conn.QueryRow(ctx, `SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()`).Scan(&r.deadlocks)
}

// write appends until the window ends.
func (r *headRace) write(ctx context.Context, writer int, store *pipeline.Store, began, end time.Time) error {
	random := rand.New(rand.NewPCG(uint64(writer), 1))
	for ctx.Err() == nil {
		before := time.Now()
		if before.After(end) {
			return nil
		}
		events, first := r.events.take(random, r.load.Events)
		_, err := store.Append(ctx, events, 0, headBatchBytes)
		now := time.Now()
		switch {
		case err == nil:
			r.ledger.settleAll(first, len(events), r.ledger.tickOf(now))
		case errors.Is(err, pipeline.ErrOutcomeUnknown):
			r.refuse(first, len(events), isUnknown)
		case errors.Is(err, pipeline.ErrUnavailable):
			r.refuse(first, len(events), isRefused)
		default:
			return err
		}
		switch {
		case before.Before(began):
		case err != nil:
			r.failed.Add(1)
		case now.Before(end):
			r.flushes.Add(1)
			r.latency.record(int64(writer), now.Sub(before))
		}
	}
	return ctx.Err()
}

func (r *headRace) refuse(first int64, n int, marks uint32) {
	for i := range n {
		r.ledger.settle(first+int64(i), 0, marks)
	}
}

// watch counts in the window how many writers wait for a lock that another one has.
func (r *headRace) watch(ctx context.Context, conn *pgx.Conn, began, end time.Time) error {
	pause(ctx, time.Until(began))
	for ; time.Now().Before(end) && ctx.Err() == nil; pause(ctx, waitersEvery) {
		var waiting int64
		err := conn.QueryRow(ctx, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&waiting)
		if err != nil {
			return fmt.Errorf("count the writers that wait: %w", err)
		}
		r.waiting += waiting
		r.looks++
	}
	return ctx.Err()
}

// values are what was measured, by column of the table.
func (r *headRace) values() map[string]float64 {
	q := quantilesOf(r.latency.merged())
	rate := float64(r.flushes.Load()) / r.seconds
	values := map[string]float64{
		"writers": float64(r.load.Callers), "events of a flush": float64(r.load.Events), "keys": float64(r.load.Keys),
		"flushes": rate, "events": rate * float64(r.load.Events),
		"p50": q.P50, "p99": q.P99, "max": q.Max,
		"failed flushes": float64(r.failed.Load()), "deadlocks": float64(r.deadlocks),
	}
	if r.looks > 0 {
		values["writers waiting"] = float64(r.waiting) / float64(r.looks)
	}
	return values
}
