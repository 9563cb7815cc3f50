package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"

	"github.com/waybillhq/waybill/internal/expect"
	"github.com/waybillhq/waybill/internal/process"
	"github.com/waybillhq/waybill/pipeline"
)

// tailCommand prints events as they are queued.
type tailCommand struct {
	process.NATS
	eventFilter
	outputFlag
	Lane     []int `env:"-" want:"lane" help:"Only these lanes."`
	Limit    int   `env:"-" default:"0" help:"End after so many events; 0: never."`
	ShowData bool  `env:"-" help:"With -o json: the events' data too, which may be confidential."`
}

// Validate refuses flags that cannot work together.
func (c *tailCommand) Validate() error {
	if c.Limit < 0 {
		return fmt.Errorf("--limit: %d; want 0 (no end) or more", c.Limit)
	}
	if c.ShowData && !c.json() {
		return errors.New("--show-data: data may be anything and would break the lines; give -o json too")
	}
	return nil
}

// Run prints until it is interrupted, which is its proper end unless --limit gives it another.
func (c *tailCommand) Run(ctx context.Context, con *console) error {
	queue, nc, err := connectQueue(ctx, c.NATS, lookTimeout)
	if err != nil {
		return err
	}
	defer nc.Close()
	printed := 0
	start := pipeline.TailStart{Since: c.Since.at(time.Now()), Lanes: c.Lane}
	if len(c.Lane) > 0 {
		lanes, former, err := queue.Lanes(ctx)
		if start.Since.IsZero() {
			former = nil // nothing comes any more
		}
		if err == nil {
			err = checkLanes(c.Lane, lanes, former)
		}
		if err != nil {
			return interrupted(ctx, err)
		}
	}
	ready := func() { _, _ = fmt.Fprintln(con.err, "reading; Ctrl-C ends it") }
	err = queue.Tail(ctx, start, ready, func(b pipeline.TailedBatch) error {
		return expect.EachEvent(b, func(index int, ce *pb.CloudEvent) error {
			if !c.Matches(ce) {
				return nil
			}
			if err := c.event(con, b, index, ce); err != nil {
				return err
			}
			if printed++; printed == c.Limit {
				return errEnough
			}
			return nil
		})
	})
	if errors.Is(err, errEnough) || c.Limit == 0 && ctx.Err() != nil {
		return nil
	}
	return interrupted(ctx, err)
}

func (c *tailCommand) event(con *console, b pipeline.TailedBatch, index int, ce *pb.CloudEvent) error {
	if c.json() {
		s, err := newStreamedEvent(b, index, ce, c.ShowData)
		if err != nil {
			return fmt.Errorf("event %s of %s: %w", ce.Id, ce.Source, err)
		}
		return c.print(con, "", s)
	}
	again := ""
	if b.Attempt > 0 {
		again = fmt.Sprintf("  retransmitted (attempt %d)", b.Attempt)
	}
	_, err := fmt.Fprintf(con.out, "%s  lane %02d  %s  %s  %s  seqnum %s%s\n", b.Stored.UTC().Format("15:04:05.000"), b.Lane,
		oneLine(ce.Source), oneLine(ce.Type), oneLine(ce.Id), expect.AttributeText(ce, pipeline.SeqnumAttribute), again)
	return err
}
