package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"

	"github.com/waybillhq/waybill/internal/cli"
	"github.com/waybillhq/waybill/internal/expect"
	"github.com/waybillhq/waybill/pipeline"
)

// expectCommand waits for deliveries.
type expectCommand struct {
	pipelineServers
	eventFilter
	outputFlag
	Count  int           `env:"-" default:"1" help:"How many events, at least."`
	Within time.Duration `env:"-" default:"30s" help:"How long they may take."`
	Sink   []string      `env:"-" help:"Sinks that they must have reached. Default: all."`
}

// Help says what counts.
func (*expectCommand) Help() string {
	return `An event counts once it is settled for each of the sinks: the sink took it, and a janitor has its receipt. Dead letters do not count. What was queued before the command began counts with --since only; without it, start the command first and wait for "ready" on its standard error.`
}

// Validate refuses what nobody can wait for.
func (c *expectCommand) Validate() error {
	switch {
	case c.Count < 1:
		return fmt.Errorf("--count: %d; want at least 1", c.Count)
	case c.Within <= 0:
		return fmt.Errorf("--within: %v; want more than 0, such as 30s", c.Within)
	}
	return nil
}

// expectEvery is the pause between looks at what is settled.
const expectEvery = 200 * time.Millisecond

// Run waits until enough events are delivered, or fails with a status of its own.
func (c *expectCommand) Run(ctx context.Context, con *console) error {
	store, queue, done, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer done()
	sinks, err := c.sinks(ctx, store)
	if err != nil {
		return err
	}
	began := time.Now()
	limited, cancel := context.WithDeadline(ctx, began.Add(c.Within))
	defer cancel()
	w := expect.NewWatch()
	failed := make(chan error, 1)
	var reading sync.WaitGroup
	defer reading.Wait()
	defer cancel()
	reading.Go(func() {
		failed <- queue.Tail(limited, pipeline.TailStart{Since: c.Since.at(began)}, func() { _, _ = fmt.Fprintln(con.err, "ready") }, func(b pipeline.TailedBatch) error {
			return expect.EachEvent(b, func(index int, ce *pb.CloudEvent) error {
				if c.Matches(ce) {
					w.See(b, index)
				}
				return nil
			})
		})
	})
	result := expect.Progress{Expected: c.Count, Sinks: sinks}
	told := time.Now()
	for {
		// The last look, after the time is up, counts too.
		last := limited.Err() != nil
		if ctx.Err() != nil {
			return interrupted(ctx, ctx.Err())
		}
		if err := w.Settle(ctx, store, sinks, &result); err != nil {
			return err
		}
		result.Met, result.Seconds = result.Delivered >= c.Count, time.Since(began).Seconds()
		if result.Met || last {
			return c.report(con, result)
		}
		if time.Since(told) > 5*progressEvery {
			told = time.Now()
			_, _ = fmt.Fprintln(con.err, result.Text())
		}
		select {
		case err := <-failed:
			if limited.Err() == nil {
				return err
			}
		case <-time.After(expectEvery):
		case <-limited.Done():
		}
	}
}

// sinks are those that must be reached.
func (c *expectCommand) sinks(ctx context.Context, store *pipeline.Store) ([]string, error) {
	all, err := store.Sinks(ctx)
	if err != nil || len(c.Sink) == 0 {
		return all, err
	}
	for _, name := range c.Sink {
		if err := checkPlaces(ctx, store, name, nil); err != nil {
			return nil, err
		}
	}
	return c.Sink, nil
}

func (c *expectCommand) report(con *console, r expect.Progress) error {
	if err := c.print(con, r.Text(), r); err != nil {
		return err
	}
	if r.Met {
		return nil
	}
	err := fmt.Errorf("not met within %v: %s", c.Within, r.Text())
	if r.Seen < r.Expected {
		err = fmt.Errorf("%w; if they were sent before the command began, give --since; `waybill tail` shows what comes", err)
	}
	return cli.NegativeError{Err: err}
}
