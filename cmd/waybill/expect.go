package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"

	"github.com/waybillhq/waybill/internal/cli"
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

// expectation is how far it came, as -o json prints it.
type expectation struct {
	Met      bool     `json:"met"`
	Expected int      `json:"expected"`
	Sinks    []string `json:"sinks"`
	// Delivered events reached all of the sinks. Seen ones were queued and match.
	Delivered int `json:"delivered"`
	Seen      int `json:"seen"`
	// Waiting events did not reach the sink yet, and Dead ones are its dead letters, by sink.
	Waiting map[string]int `json:"waiting,omitempty"`
	Dead    map[string]int `json:"dead_letters,omitempty"`
	Seconds float64        `json:"took_seconds"`
}

// expected is an event that matches and is not known to be delivered.
type expected struct {
	// batches that it is in: of one that was requeued that of the requeue too, which waits for one sink,
	// while the first may still wait for others.
	batches []pipeline.BatchID
	letter  pipeline.BatchID // of its dead letters: that which it was in first
	at      int64            // its position in that
}

// expectWatch collects matching events, each once.
type expectWatch struct {
	mu   sync.Mutex // guards what follows
	seen map[int64]bool
	open map[int64]expected // by position in the batch that it was in first
}

func (w *expectWatch) see(b pipeline.TailedBatch, index int) {
	e := expected{letter: b.ID, at: b.Position(index)}
	if b.Origin != nil {
		e.letter, e.at = b.Origin.Batch, pipeline.Position(b.Origin.Batch.Number, b.Origin.Index)
	}
	e.batches = []pipeline.BatchID{e.letter} // also where the stream has only the requeue of it
	w.mu.Lock()
	defer w.mu.Unlock()
	before, isOpen := w.open[e.at]
	if w.seen[e.at] && !isOpen {
		return // it is delivered
	}
	if isOpen {
		e = before
	}
	if !slices.Contains(e.batches, b.ID) {
		e.batches = append(slices.Clone(e.batches), b.ID) // settle reads the old ones meanwhile
	}
	w.seen[e.at], w.open[e.at] = true, e
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
	w := &expectWatch{seen: map[int64]bool{}, open: map[int64]expected{}}
	failed := make(chan error, 1)
	var reading sync.WaitGroup
	defer reading.Wait()
	defer cancel()
	reading.Go(func() {
		failed <- queue.Tail(limited, pipeline.TailStart{Since: c.Since.at(began)}, func() { _, _ = fmt.Fprintln(con.err, "ready") }, func(b pipeline.TailedBatch) error {
			return eachEvent(b, func(index int, ce *pb.CloudEvent) error {
				if c.matches(ce) {
					w.see(b, index)
				}
				return nil
			})
		})
	})
	result := expectation{Expected: c.Count, Sinks: sinks}
	told := time.Now()
	for {
		// The last look, after the time is up, counts too.
		last := limited.Err() != nil
		if ctx.Err() != nil {
			return interrupted(ctx, ctx.Err())
		}
		if err := w.settle(ctx, store, sinks, &result); err != nil {
			return err
		}
		result.Met, result.Seconds = result.Delivered >= c.Count, time.Since(began).Seconds()
		if result.Met || last {
			return c.report(con, result)
		}
		if time.Since(told) > 5*progressEvery {
			told = time.Now()
			_, _ = fmt.Fprintln(con.err, result.text())
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

// settle asks Postgres what became of the open events. What waits is asked for before the dead letters:
// what a sink refused becomes one in the transaction in which it waits no more.
func (w *expectWatch) settle(ctx context.Context, store *pipeline.Store, sinks []string, r *expectation) error {
	w.mu.Lock()
	open := maps.Clone(w.open)
	r.Seen = len(w.seen)
	w.mu.Unlock()
	batches, letters := map[pipeline.BatchID]bool{}, map[pipeline.BatchID]bool{}
	for _, e := range open {
		letters[e.letter] = true
		for _, b := range e.batches {
			batches[b] = true
		}
	}
	waits, err := store.WaitsFor(ctx, slices.Collect(maps.Keys(batches)))
	if err != nil {
		return err
	}
	refused, err := store.Refused(ctx, slices.Collect(maps.Keys(letters)))
	if err != nil {
		return err
	}
	r.Waiting, r.Dead = map[string]int{}, map[string]int{}
	for at, e := range open {
		delivered := true
		for _, sink := range sinks {
			switch {
			case slices.ContainsFunc(e.batches, func(b pipeline.BatchID) bool { return slices.Contains(waits[b], sink) }):
				r.Waiting[sink]++
				delivered = false
			case slices.Contains(refused[at], sink):
				r.Dead[sink]++
				delivered = false
			}
		}
		if delivered {
			r.Delivered++
			w.mu.Lock()
			delete(w.open, at)
			w.mu.Unlock()
		}
	}
	return nil
}

// text says in a line how far it came.
func (r expectation) text() string {
	text := fmt.Sprintf("%d of %s delivered to %s", r.Delivered, plural(r.Expected, "event"), strings.Join(r.Sinks, " and "))
	if r.Delivered >= r.Expected {
		return text + fmt.Sprintf(" after %.1f s", r.Seconds)
	}
	for _, sink := range r.Sinks {
		if n := r.Waiting[sink]; n > 0 {
			text += fmt.Sprintf("; %s lacks %d", sink, n)
		}
		if n := r.Dead[sink]; n > 0 {
			text += fmt.Sprintf("; %s are dead letters of %s", plural(n, "event"), sink)
		}
	}
	if r.Seen < r.Expected {
		text += fmt.Sprintf("; %d that match came", r.Seen)
	}
	return text
}

func (c *expectCommand) report(con *console, r expectation) error {
	if err := c.print(con, r.text(), r); err != nil {
		return err
	}
	if r.Met {
		return nil
	}
	err := fmt.Errorf("not met within %v: %s", c.Within, r.text())
	if r.Seen < r.Expected {
		err = fmt.Errorf("%w; if they were sent before the command began, give --since; `waybill tail` shows what comes", err)
	}
	return cli.NegativeError{Err: err}
}
