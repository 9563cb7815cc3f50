package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/waybillhq/waybill/pipeline"
)

// purgeCommand deletes dead letters. What is on its way again is never deleted.
type purgeCommand struct {
	letterStore
	letterFilter
	letterAmount
	outputFlag
	State  []string `env:"-" enum:"dead,late" default:"dead,late" help:"Only in these states: dead, late."`
	DryRun bool     `env:"-" help:"Only say how many there are."`
	Yes    bool     `env:"-" help:"Do not ask. Needed where standard input is no terminal."`
}

// purgeResult is what a purge did, as -o json prints it.
type purgeResult struct {
	DryRun bool `json:"dry_run"`
	Purged int  `json:"purged"` // of a dry run: that would be
	More   bool `json:"more"`   // there may be, beyond the limit
}

// Validate refuses a purge of everything by accident.
func (c *purgeCommand) Validate() error { return c.letterAmount.validate(c.letterFilter) }

// Run deletes dead letters, some hundred in a transaction.
func (c *purgeCommand) Run(ctx context.Context, con *console) error {
	store, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	filter, err := c.filter(ctx, store, states(c.State)...)
	if err != nil {
		return err
	}
	if filter.Until.IsZero() {
		// So that what is counted and asked about is what is deleted.
		if filter.Until, err = store.Now(ctx); err != nil {
			return err
		}
	}
	if c.DryRun || !c.Yes {
		n, more, err := c.count(ctx, con, store, filter)
		if err != nil {
			return err
		}
		if c.DryRun {
			return c.report(con, purgeResult{DryRun: true, Purged: n, More: more})
		}
		if n == 0 {
			return c.report(con, purgeResult{})
		}
		if err := c.confirm(con, n); err != nil {
			return err
		}
	}
	walk, err := store.WalkLetters(ctx, filter)
	if err != nil {
		return err
	}
	n, more, err := walkLetters(ctx, con, walk, c.letterAmount, "deleted", func(limit int) (int, error) { return walk.Purge(ctx, limit) })
	if err != nil {
		return undone(err, n, "deleted")
	}
	return c.report(con, purgeResult{Purged: n, More: more})
}

func (c *purgeCommand) count(ctx context.Context, con *console, store *pipeline.Store, filter pipeline.LetterFilter) (int, bool, error) {
	walk, err := store.WalkLetters(ctx, filter)
	if err != nil {
		return 0, false, err
	}
	return walkLetters(ctx, con, walk, c.letterAmount, "counted", func(limit int) (int, error) { return walk.Count(ctx, limit) })
}

// confirm asks, where there is somebody to ask.
func (c *purgeCommand) confirm(con *console, n int) error {
	if !con.asks {
		return fmt.Errorf("--yes: is missing, and nobody can be asked: %s would be deleted for good; look with --dry-run, then give --yes", plural(n, "dead letter"))
	}
	_, _ = fmt.Fprintf(con.err, "%s will be deleted for good. Type yes to go on: ", plural(n, "dead letter"))
	line, err := bufio.NewReader(con.in).ReadString('\n')
	switch {
	case strings.TrimSpace(line) == "yes":
		return nil
	case err != nil && !errors.Is(err, io.EOF):
		return fmt.Errorf("read the answer: %w; nothing was deleted", err)
	default:
		return errors.New("the answer was not yes: nothing was deleted (--yes answers beforehand)")
	}
}

func (c *purgeCommand) report(con *console, r purgeResult) error {
	if r.More {
		_, _ = fmt.Fprintf(con.err, "there may be more beyond --limit=%d: run it again, or give --all\n", c.Limit)
	}
	text := plural(r.Purged, "dead letter") + " deleted"
	if r.DryRun {
		text = plural(r.Purged, "dead letter") + " would be deleted"
	}
	return c.print(con, text, r)
}
