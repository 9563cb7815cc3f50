package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/waybillhq/waybill/pipeline"
)

const (
	// churnAppenders append at once, as so many ingests, unless --closed says so.
	churnAppenders = 2
	// churnRate is events/s, unless --rate or --closed says otherwise: what most machines keep up
	// with, so that sizes can be compared.
	churnRate = 10_000
	// churnAhead is how many flushes may wait for the settler before appending waits for it.
	churnAhead = 4
	// churnTTL is the default of an event.
	churnTTL = 7 * 24 * time.Hour
	// upkeepDropped is how many batches a look for removed sinks takes, as a janitor's.
	upkeepDropped = 200
)

// churnLoad says what goes through the tables.
type churnLoad struct {
	events, keys, bytes int
	// appenders append flushes at a rate of events/s together, 0: as fast as they are settled.
	appenders int
	rate      float64
	// pending batches wait for the archive, in order of their acceptance: as many as were
	// there at the beginning.
	pending []pipeline.BatchID
	// sleepers is the share of batches, 0 to 1, that the archive never takes.
	sleepers float64
}

// churn appends events, and settles as many: the endpoint gives its receipt for a batch at
// once, and the archive for the oldest one, so that as many wait as before. All statements are the
// store's.
type churn struct {
	load            churnLoad
	ledger          *ledger
	made            *storeEvents
	ingest, janitor *pipeline.Store
	fresh           chan []pipeline.BatchID
	stop            chan struct{} // closed when it is to end

	queue []pipeline.BatchID // of the settler: what waits for the archive
	quota float64            // of the settler: parts of a sleeper that are due

	began             time.Time    // of run
	flushes           atomic.Int64 // that were begun
	appended, settled atomic.Int64 // events
	batches, done     atomic.Int64 // appended and settled
	sleeping          atomic.Int64 // batches
	failures          atomic.Int64 // transactions that were tried again
	surveying         atomic.Int64 // nanoseconds that the newest survey took
}

func newChurn(ctx context.Context, url string, load churnLoad) (c *churn, err error) {
	c = &churn{
		load: load, ledger: newLedger(time.Now()), queue: slices.Clone(load.pending),
		fresh: make(chan []pipeline.BatchID, churnAhead), stop: make(chan struct{}),
	}
	c.made, err = newStoreEvents(c.ledger, Load{Keys: load.keys, Bytes: load.bytes})
	if err != nil {
		return nil, err
	}
	config := pipeline.DefaultStoreConfig(url)
	if c.janitor, err = pipeline.OpenStore(ctx, config, pipeline.DefaultLanes); err != nil {
		return nil, err
	}
	config.KeepPlans = true
	if c.ingest, err = pipeline.OpenStore(ctx, config, pipeline.DefaultLanes); err != nil {
		c.janitor.Close()
		return nil, err
	}
	return c, nil
}

func (c *churn) close() {
	c.ingest.Close()
	c.janitor.Close()
}

// run goes on until stop is closed, and then until everything that was begun is done.
func (c *churn) run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	appending, appendCtx := errgroup.WithContext(ctx)
	c.began = time.Now()
	for i := range c.load.appenders {
		appending.Go(func() error { return c.append(appendCtx, rand.New(rand.NewPCG(uint64(i), 2))) })
	}
	group.Go(func() error {
		defer close(c.fresh)
		return appending.Wait()
	})
	group.Go(func() error { return c.settle(ctx) })
	group.Go(func() error { return c.upkeep(ctx) })
	return group.Wait()
}

func (c *churn) stopping() bool {
	select {
	case <-c.stop:
		return true
	default:
		return false
	}
}

// append is an ingest.
func (c *churn) append(ctx context.Context, r *rand.Rand) error {
	for c.await(ctx); !c.stopping() && ctx.Err() == nil; c.await(ctx) {
		events, _ := c.made.take(r, c.load.events)
		done, err := c.ingest.Append(ctx, events, churnTTL, headBatchBytes)
		if errors.Is(err, pipeline.ErrUnavailable) { // nothing was stored
			c.failures.Add(1)
			pause(ctx, failurePause)
			continue
		}
		if err != nil {
			return err
		}
		ids := done.IDs()
		c.appended.Add(int64(len(events)))
		c.batches.Add(int64(len(ids)))
		select {
		case c.fresh <- ids:
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

// await pauses until the next flush is due, which may be in the past.
func (c *churn) await(ctx context.Context) {
	if c.load.rate <= 0 {
		return
	}
	n := float64(c.flushes.Add(1) - 1)
	due := c.began.Add(time.Duration(n * float64(c.load.events) / c.load.rate * float64(time.Second)))
	pauseOr(ctx, c.stop, time.Until(due))
}

// settle is a janitor, whose transactions apply the receipts of both sinks that have come meanwhile.
func (c *churn) settle(ctx context.Context) error {
	for ids := range c.fresh {
		for more := true; more; {
			select {
			case further, open := <-c.fresh:
				ids = append(ids, further...)
				more = open
			default:
				more = false
			}
		}
		c.admit(ids)
		oldest := c.queue[:max(0, len(c.queue)-len(c.load.pending))]
		receipts := []pipeline.Receipt{receiptOf(ingressSink, ids)}
		if len(oldest) > 0 {
			receipts = append(receipts, receiptOf(archiveSink, oldest))
		}
		settled, err := c.janitor.Settle(ctx, receipts)
		for err != nil && ctx.Err() == nil { // as a janitor, which tries until it succeeds
			c.failures.Add(1)
			pause(ctx, failurePause)
			settled, err = c.janitor.Settle(ctx, receipts)
		}
		if err != nil {
			return err
		}
		c.queue = c.queue[len(oldest):]
		c.settled.Add(int64(settled.Events))
		c.done.Add(int64(settled.Batches))
	}
	return nil
}

// admit lets new batches wait for the archive, but for the sleepers.
func (c *churn) admit(ids []pipeline.BatchID) {
	for _, id := range ids {
		if c.quota += c.load.sleepers; c.quota >= 1 {
			c.quota--
			c.sleeping.Add(1)
			continue
		}
		c.queue = append(c.queue, id)
	}
}

func receiptOf(sink string, ids []pipeline.BatchID) pipeline.Receipt {
	r := pipeline.Receipt{Sink: sink, Batches: make([]pipeline.BatchReceipt, len(ids))}
	for i, id := range ids {
		r.Batches[i].ID = id
	}
	return r
}

// upkeep is what a janitor and an ingest do beside, at the janitor's pace: it surveys what waits, unless
// that would take more than a tenth of the time, and does what the survey asks for.
func (c *churn) upkeep(ctx context.Context) error {
	pace := pipeline.DefaultJanitorConfig()
	walked := time.Now()
	for pauseOr(ctx, c.stop, pace.RetransmitEvery); !c.stopping() && ctx.Err() == nil; {
		survey, took, err := c.survey(ctx)
		if err != nil {
			return err
		}
		if time.Since(walked) >= pace.ExpireEvery {
			walked = time.Now()
			names, err := c.janitor.Sinks(ctx)
			if err != nil {
				return err
			}
			if survey.WaitsForOthers(names) {
				if _, err := c.janitor.DropRemovedSinks(ctx, upkeepDropped); err != nil {
					return err
				}
			}
			if survey.Due() {
				if _, err := c.janitor.Expire(ctx); err != nil {
					return err
				}
			}
		}
		pauseOr(ctx, c.stop, max(pace.RetransmitEvery, (surveyShare-1)*took))
	}
	return ctx.Err()
}

// survey leaves a survey where ingests read it, and reads it as they do.
func (c *churn) survey(ctx context.Context) (survey pipeline.Survey, took time.Duration, err error) {
	began := time.Now()
	if survey, err = c.janitor.Survey(ctx); err != nil {
		return survey, 0, err
	}
	took = time.Since(began)
	c.surveying.Store(int64(took))
	if err := c.janitor.SaveWaiting(ctx, survey.Waiting()); err != nil {
		return survey, took, err
	}
	_, err = c.ingest.ReadWaiting(ctx, time.Minute)
	return survey, took, err
}

// pauseOr is pause, which stop ends too.
func pauseOr(ctx context.Context, stop <-chan struct{}, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-stop:
	case <-ctx.Done():
	}
}

// verdict compares what was appended and settled with what is left in the tables, in which there were
// some events before.
func (c *churn) verdict(ctx context.Context, url, name string, before int64) (Verdict, error) {
	conn, err := connectTo(ctx, url)
	if err != nil {
		return Verdict{}, err
	}
	defer func() { _ = conn.Close(ctx) }() // it only reads
	v := Verdict{System: name, Sink: postgresSink, Accepted: before + c.appended.Load(), Delivered: c.settled.Load()}
	var counted, batches int64
	err = conn.QueryRow(ctx, `SELECT (SELECT count(*) FROM waybill.events), count(*), coalesce(sum(events), 0)::bigint FROM waybill.batches`).Scan(&v.Pending, &batches, &counted)
	if err != nil {
		return Verdict{}, fmt.Errorf("count what is left: %w", err)
	}
	v.Lost = max(0, v.Accepted-v.Delivered-v.Pending)
	v.Doubled = max(0, v.Delivered+v.Pending-v.Accepted)
	if expected := int64(len(c.load.pending)) + c.batches.Load() - c.done.Load(); batches != expected || counted != v.Pending {
		v.Misjudged = max(1, abs(batches-expected)+abs(counted-v.Pending))
		v.Examples = append(v.Examples, fmt.Sprintf("%d batches of %d events are left, with %d rows; want %d batches", batches, counted, v.Pending, expected))
	}
	return v, nil
}

func abs(n int64) int64 { return max(n, -n) }
