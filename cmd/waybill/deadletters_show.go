package main

import (
	"context"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/waybillhq/waybill/pipeline"
)

// showCommand shows what is known of one event's dead letters, of which there is one for each
// sink that lacks it.
type showCommand struct {
	letterStore
	outputFlag
	Position int64  `arg:"" optional:"" help:"Position, as ls prints it. Or give --source and --id."`
	Sink     string `env:"-" help:"Only of this sink."`
	Source   string `env:"-" help:"Source of the event, exactly."`
	ID       string `name:"id" env:"-" help:"Id of the event."`
	ShowData bool   `env:"-" help:"The event's data too, which may be confidential."`
}

// Validate wants one way of naming the letter.
func (c *showCommand) Validate() error {
	byEvent := c.Source != "" && c.ID != ""
	if (c.Position > 0) == byEvent || !byEvent && c.Source+c.ID != "" {
		return errors.New("which dead letter? give its position, as ls prints it, or both --source and --id")
	}
	return nil
}

// showMost bounds what show prints.
const showMost = 100

// Run shows the letters, or fails if there is none.
func (c *showCommand) Run(ctx context.Context, con *console) error {
	store, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	letters, err := c.find(ctx, con, store)
	if err != nil {
		return err
	}
	if len(letters) == 0 {
		return fmt.Errorf("there is no such dead letter, %s: it was delivered or purged, or never was one; `waybill deadletters ls` lists them", c.which())
	}
	for i, d := range letters {
		if i > 0 && !c.json() {
			_, _ = fmt.Fprintln(con.out) // what follows tells of a failure
		}
		if err := c.show(con, d); err != nil {
			return err
		}
	}
	return nil
}

// which is what was asked for.
func (c *showCommand) which() string {
	which := fmt.Sprintf("position %d", c.Position)
	if c.Position == 0 {
		which = fmt.Sprintf("--source=%s --id=%s", c.Source, c.ID)
	}
	if c.Sink != "" {
		which += " --sink=" + c.Sink
	}
	return which
}

func (c *showCommand) find(ctx context.Context, con *console, store *pipeline.Store) ([]pipeline.DeadLetter, error) {
	if c.Position > 0 {
		return store.LettersAt(ctx, c.Position, c.Sink)
	}
	// No * here: an event whose source ends in one is found by itself, and others are left out.
	walk, err := store.WalkLetters(ctx, pipeline.LetterFilter{Sink: c.Sink, Source: c.Source, ID: c.ID})
	if err != nil {
		return nil, err
	}
	var all []pipeline.DeadLetter
	_, _, err = walkLetters(ctx, con, walk, letterAmount{Limit: showMost}, "found", func(limit int) (int, error) {
		letters, err := walk.List(ctx, limit, true)
		n := 0
		for _, d := range letters {
			if d.Source == c.Source {
				all = append(all, d)
				n++
			}
		}
		return n, err
	})
	return all, err
}

func (c *showCommand) show(con *console, d pipeline.DeadLetter) error {
	out := newLetter(d)
	dataBytes, damage := out.setEvent(d, c.ShowData)
	if c.json() {
		return c.print(con, "", out)
	}
	table := tabwriter.NewWriter(con.out, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		_, _ = fmt.Fprintf(table, "%s\t%s\n", name, oneLine(fmt.Sprintf(format, args...))) // Flush tells
	}
	row("position", "%d", d.Position)
	row("sink", "%s", d.Sink)
	row("state", "%s", letterWords(d))
	row("code", "%s", d.Code)
	row("reason", "%s", d.Reason)
	row("source", "%s", d.Source)
	row("type", "%s", d.Type)
	row("id", "%s", d.ID)
	row("seqnum", "%d", d.Seqnum)
	row("batch", "%s, lane %d", out.Batch, d.Lane)
	row("accepted at", "%s", showTime(d.AcceptedAt))
	row("failed at", "%s", showTime(d.FailedAt))
	if d.Requeues > 0 {
		row("requeued", "%d times, last into batch %d", d.Requeues, d.RequeuedBatch)
	}
	if !d.RequeuedAt.IsZero() {
		row("requeued at", "%s", showTime(d.RequeuedAt))
	}
	if !d.DeliveredLateAt.IsZero() {
		row("delivered late", "%s", showTime(d.DeliveredLateAt))
	}
	if damage != nil {
		row("event", "%v", damage)
		if len(d.Encoded) > 0 {
			row("bytes", "%d; --show-data -o json prints them", len(d.Encoded))
		}
		return table.Flush()
	}
	if !c.ShowData {
		row("data", "%d bytes; --show-data prints them", dataBytes)
	}
	row("event", "")
	if err := table.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(con.out, "%s\n", out.Event)
	return err
}

// letterWords says what the state means for the operator.
func letterWords(d pipeline.DeadLetter) string {
	switch d.State() {
	case pipeline.LetterRequeued:
		return "requeued: on its way again; the sink's receipt clears it"
	case pipeline.LetterLate:
		return "late: the sink took it after all; nothing is to be done"
	default:
		return "dead: the sink lacks it; `waybill deadletters requeue` sends it again"
	}
}

func showTime(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000000Z") }
