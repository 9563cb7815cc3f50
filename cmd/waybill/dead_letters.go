package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/protobuf/proto"

	"github.com/waybillhq/waybill/internal/process"
	"github.com/waybillhq/waybill/internal/producer"
	"github.com/waybillhq/waybill/pipeline"
)

type deadLettersCommand struct {
	List    listCommand    `cmd:"" help:"List dead letters, the oldest failure first."`
	Requeue requeueCommand `cmd:"" help:"Put dead letters of a sink back into the queue, under their own ids and seqnums."`
}

// letterFlags are what both commands need.
type letterFlags struct {
	DatabaseURL string `name:"database-url" secret:"" required:"" placeholder:"URL" help:"Postgres. WAYBILL_DATABASE_URL_FILE names a file that holds it."`
	process.Lanes
	Code  string `env:"-" help:"Only with this code, such as expired."`
	Limit int    `env:"-" default:"100" help:"At most this many."`
}

func (f letterFlags) open(ctx context.Context) (*pipeline.Store, error) {
	if f.Limit < 1 {
		return nil, fmt.Errorf("--limit: %d; want at least 1", f.Limit)
	}
	return openStore(ctx, f.DatabaseURL, f.Lanes.Lanes)
}

type listCommand struct {
	letterFlags
	Sink     string `env:"-" help:"Only of this sink."`
	JSON     bool   `env:"-" name:"json" help:"One JSON object a line instead of a table."`
	ShowData bool   `env:"-" help:"With --json: the events, with their data."`
}

// letter is a dead letter as --json prints it.
type letter struct {
	Position      int64           `json:"position"`
	Sink          string          `json:"sink"`
	Code          string          `json:"code"`
	Reason        string          `json:"reason"`
	FailedAt      time.Time       `json:"failed_at"`
	AcceptedAt    time.Time       `json:"accepted_at"`
	RequeuedAt    time.Time       `json:"requeued_at,omitzero"`
	DeliveredLate time.Time       `json:"delivered_late_at,omitzero"`
	Source        string          `json:"source"`
	Type          string          `json:"type"`
	ID            string          `json:"id"`
	Seqnum        int64           `json:"seqnum"`
	Event         json.RawMessage `json:"event,omitempty"`
}

// Run lists dead letters.
func (c *listCommand) Run(ctx context.Context, con *console) error {
	if c.ShowData && !c.JSON {
		return errors.New("--show-data: data may be anything; give --json too")
	}
	store, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	letters, err := store.ListDeadLetters(ctx, c.Sink, c.Code, c.Limit)
	if err != nil {
		return err
	}
	if c.JSON {
		return c.printJSON(con, letters)
	}
	return printLetters(con, letters, c.Limit)
}

func printLetters(con *console, letters []pipeline.DeadLetter, limit int) error {
	table := tabwriter.NewWriter(con.out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "failed at\tsink\tcode\tsource\ttype\tid\tseqnum\tstate\treason") // Flush tells
	for _, d := range letters {
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\n", d.FailedAt.UTC().Format(time.DateTime),
			d.Sink, d.Code, oneLine(d.Source), oneLine(d.Type), oneLine(d.ID), d.Seqnum, letterState(d), oneLine(d.Reason))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if len(letters) == limit {
		_, err := fmt.Fprintf(con.out, "there may be more than these %d; see --limit\n", limit)
		return err
	}
	return nil
}

func letterState(d pipeline.DeadLetter) string {
	switch {
	case !d.DeliveredLateAt.IsZero():
		return "delivered late"
	case !d.RequeuedAt.IsZero():
		return "requeued"
	default:
		return "dead"
	}
}

func (c *listCommand) printJSON(con *console, letters []pipeline.DeadLetter) error {
	encoder := json.NewEncoder(con.out)
	encoder.SetEscapeHTML(false)
	for _, d := range letters {
		out := letter{
			Position: d.Position, Sink: d.Sink, Code: d.Code, Reason: d.Reason, FailedAt: d.FailedAt, AcceptedAt: d.AcceptedAt,
			RequeuedAt: d.RequeuedAt, DeliveredLate: d.DeliveredLateAt, Source: d.Source, Type: d.Type, ID: d.ID, Seqnum: d.Seqnum,
		}
		if c.ShowData {
			var err error
			if out.Event, err = eventJSON(d.Encoded); err != nil {
				return err
			}
		}
		if err := encoder.Encode(out); err != nil {
			return err
		}
	}
	return nil
}

func eventJSON(encoded []byte) (json.RawMessage, error) {
	ce := new(pb.CloudEvent)
	if err := proto.Unmarshal(encoded, ce); err != nil {
		return nil, fmt.Errorf("read a dead letter's event: %w", err)
	}
	return producer.AppendJSON(nil, ce)
}

type requeueCommand struct {
	letterFlags
	Sink     string        `env:"-" required:"" help:"Sink whose dead letters are queued again."`
	EventTTL time.Duration `name:"event-ttl" env:"WAYBILL_EVENT_TTL" default:"${event_ttl}" help:"How long they may wait for the sink this time; 0: for ever."`
	DryRun   bool          `env:"-" help:"Only say how many there are."`
}

// Run puts dead letters back into the queue.
func (c *requeueCommand) Run(ctx context.Context, con *console) error {
	store, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	if c.DryRun {
		n, err := store.CountRequeueable(ctx, c.Sink, c.Code, c.Limit)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(con.out, "%s of %s would be queued again (at most %d at a time)\n", plural(n, "dead letter"), c.Sink, c.Limit)
		return err
	}
	n, err := store.Requeue(ctx, c.Sink, c.Code, c.Limit, c.EventTTL)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(con.out, "%s of %s queued again; each stays listed until the sink has it\n", plural(n, "dead letter"), c.Sink)
	return err
}
