package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/waybillhq/waybill/internal/cli"
	"github.com/waybillhq/waybill/pipeline"
)

type requeueCommand struct {
	letterStore
	letterFilter
	letterAmount
	outputFlag
	EventTTL time.Duration `name:"event-ttl" env:"WAYBILL_EVENT_TTL" default:"${event_ttl}" help:"How long they may wait for the sink this time; 0: for ever."`
	DryRun   bool          `env:"-" help:"Only say how many there are."`
}

// requeueResult is what a requeue did, as -o json prints it.
type requeueResult struct {
	DryRun   bool `json:"dry_run"`
	Requeued int  `json:"requeued"` // of a dry run: that would be
	Skipped  int  `json:"skipped"`  // that matched first and then could not be
	More     bool `json:"more"`     // there may be, beyond the limit
}

// Validate refuses a requeue of everything by accident.
func (c *requeueCommand) Validate() error {
	if c.EventTTL < 0 {
		return fmt.Errorf("--event-ttl: %v; want 0 (for ever) or more", c.EventTTL)
	}
	return c.letterAmount.validate(c.letterFilter)
}

// Run puts dead letters back into the queue, some hundred in a transaction.
func (c *requeueCommand) Run(ctx context.Context, con *console) error {
	store, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	if c.Sink != "" {
		err := checkPlaces(ctx, store, c.Sink, nil)
		if wrong := (cli.WrongError{}); errors.As(err, &wrong) {
			err = fmt.Errorf("%w; `waybill migrate --sinks` adds one", err)
		}
		if err != nil {
			return err
		}
	}
	filter, err := c.filter(ctx, store, pipeline.LetterDead)
	if err != nil {
		return err
	}
	walk, err := store.WalkLetters(ctx, filter)
	if err != nil {
		return err
	}
	result := requeueResult{DryRun: c.DryRun}
	result.Requeued, result.More, err = walkLetters(ctx, con, walk, c.letterAmount, "queued again", func(limit int) (int, error) {
		if c.DryRun {
			return walk.Count(ctx, limit)
		}
		done, err := walk.Requeue(ctx, limit, c.EventTTL)
		result.Skipped += done.Skipped
		return done.Letters, err
	})
	if err != nil {
		return undone(err, result.Requeued, "queued again")
	}
	return c.report(con, result)
}

func (c *requeueCommand) report(con *console, r requeueResult) error {
	if r.Skipped > 0 {
		_, _ = fmt.Fprintf(con.err, "%s left alone: requeued by somebody else at the same time, delivered meanwhile, or of a sink that is no more (`waybill migrate --sinks` adds it again)\n", plural(r.Skipped, "dead letter"))
	}
	if r.More {
		_, _ = fmt.Fprintf(con.err, "there may be more beyond --limit=%d: run it again, or give --all\n", c.Limit)
	}
	text := plural(r.Requeued, "dead letter") + " queued again"
	if r.Requeued > 0 {
		text += "; each stays listed until the sink has it"
	}
	if r.DryRun {
		text = plural(r.Requeued, "dead letter") + " would be queued again"
	}
	return c.print(con, text, r)
}
