// Command emitter is an example of a program that emits its own events: it places some orders, and
// emits an event of each from inside.
//
//	make run                                                # in another terminal: the whole system
//	env $(cat .waybill/env) go run ./examples/emitter       # and then this
//	bin/waybill archive cat --type order.placed             # what became of it
//
// The addresses of the pipeline's Postgres and NATS are in WAYBILL_DATABASE_URL and
// WAYBILL_NATS_URL, or are given as --database-url and --nats-url.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/waybillhq/waybill/pipeline"
)

func main() {
	databaseURL := flag.String("database-url", os.Getenv("WAYBILL_DATABASE_URL"), "Postgres of the pipeline")
	natsURL := flag.String("nats-url", os.Getenv("WAYBILL_NATS_URL"), "NATS servers of the pipeline")
	orders := flag.Int("orders", 10, "orders to place")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *databaseURL, *natsURL, *orders, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run has an emitter for as long as orders are placed.
func run(ctx context.Context, databaseURL, natsURL string, orders int, out io.Writer) error {
	config := pipeline.DefaultEmitterConfig(databaseURL, natsURL)
	config.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	emitter, err := pipeline.NewEmitter(config)
	if err != nil {
		return err
	}
	// The emitter runs until the program has no more to emit, and not just until it is told to stop.
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	stopped := make(chan error, 1)
	go func() { stopped <- emitter.Run(running) }()
	err = place(ctx, emitter, orders, out)
	stop()
	return errors.Join(err, <-stopped)
}

// order is what the program is about.
type order struct {
	Number int       `json:"number"`
	Placed time.Time `json:"placed"`
}

// event is what the program tells others about an order. Its id is the order's own: emitted
// again, it is the same event.
func (o order) event(id string) pipeline.CloudEvent {
	return pipeline.CloudEvent{
		Source: "/examples/emitter", Type: "order.placed", ID: id, Subject: fmt.Sprint("order/", o.Number),
		Time: o.Placed, Data: pipeline.JSONData(o),
		Extensions: map[string]pipeline.AttributeValue{"priority": pipeline.IntegerValue(1)},
	}
}

// place emits orders, one by one, together and without waiting.
func place(ctx context.Context, emitter *pipeline.Emitter, orders int, out io.Writer) error {
	if err := emitter.WaitReady(ctx); err != nil {
		return err
	}
	batch := fmt.Sprint(time.Now().UnixNano())
	var waiting sync.WaitGroup
	failed := make(chan error, orders)
	var together []pipeline.CloudEvent
	for n := range orders {
		event := order{n, time.Now()}.event(fmt.Sprint(batch, "-", n))
		switch n % 3 {
		case 0: // it is committed when Emit returns
			if err := emit(ctx, emitter, event); err != nil {
				return err
			}
		case 1: // done hears of it later
			waiting.Add(1)
			emitter.EmitAsync(ctx, event, func(err error) {
				failed <- err
				waiting.Done()
			})
		case 2:
			together = append(together, event)
		}
	}
	if err := emitter.EmitBatch(ctx, together...); err != nil { // all or none
		return err
	}
	waiting.Wait()
	close(failed)
	for err := range failed {
		if err != nil {
			return err
		}
	}
	// Degraded is worth a word, and no reason to stop: the events are safe.
	if err := emitter.Health(); err != nil {
		_, _ = fmt.Fprintln(out, "health:", err)
	}
	_, err := fmt.Fprintf(out, "%d orders are placed: see source /examples/emitter, ids %s-…\n", orders, batch)
	return err
}

// emit tries again where that may help. The id makes that safe, even where nobody knows what
// became of the first attempt.
func emit(ctx context.Context, emitter *pipeline.Emitter, event pipeline.CloudEvent) error {
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		err := emitter.Emit(ctx, event)
		if !errors.Is(err, pipeline.ErrOverloaded) && !errors.Is(err, pipeline.ErrUnavailable) && !errors.Is(err, pipeline.ErrOutcomeUnknown) {
			return err // it is accepted, or it never will be
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return err
		}
	}
}
