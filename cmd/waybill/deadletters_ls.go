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

	"github.com/waybillhq/waybill/internal/cloudevent"
	"github.com/waybillhq/waybill/internal/producer"
	"github.com/waybillhq/waybill/pipeline"
)

type lsCommand struct {
	letterStore
	letterFilter
	outputFlag
	State    []string `env:"-" enum:"dead,requeued,late" help:"Only in these states: dead, requeued, late."`
	Limit    int      `env:"-" default:"100" help:"At most this many."`
	ShowData bool     `env:"-" help:"With -o json: the events, with their data."`
}

// letter is a dead letter as -o json prints it.
type letter struct {
	Position      int64     `json:"position"`
	Sink          string    `json:"sink"`
	State         string    `json:"state"`
	Code          string    `json:"code"`
	Reason        string    `json:"reason"`
	FailedAt      time.Time `json:"failed_at"`
	AcceptedAt    time.Time `json:"accepted_at"`
	RequeuedAt    time.Time `json:"requeued_at,omitzero"`
	RequeuedBatch int64     `json:"requeued_batch,omitempty"`
	Requeues      int       `json:"requeues,omitempty"`
	DeliveredLate time.Time `json:"delivered_late_at,omitzero"`
	Source        string    `json:"source"`
	Type          string    `json:"type"`
	ID            string    `json:"id"`
	Seqnum        int64     `json:"seqnum"`
	Lane          int       `json:"lane"`
	// Of the batch that the event was in first.
	Batch string          `json:"batch"`
	Event json.RawMessage `json:"event,omitempty"`
	// In place of an event that cannot be decoded: its bytes, in base64, if data was asked for.
	Undecodable []byte `json:"undecodable,omitempty"`
}

func newLetter(d pipeline.DeadLetter) letter {
	number, _ := pipeline.SplitPosition(d.Position)
	return letter{
		Position: d.Position, Sink: d.Sink, State: string(d.State()), Code: d.Code, Reason: d.Reason,
		FailedAt: d.FailedAt.UTC(), AcceptedAt: d.AcceptedAt.UTC(), RequeuedAt: d.RequeuedAt.UTC(), RequeuedBatch: d.RequeuedBatch,
		Requeues: d.Requeues, DeliveredLate: d.DeliveredLateAt.UTC(), Source: d.Source, Type: d.Type, ID: d.ID,
		Seqnum: d.Seqnum, Lane: d.Lane, Batch: pipeline.BatchID{Number: number, Token: d.Token}.String(),
	}
}

// setEvent adds the letter's event, or what there is in its place, and returns the size of its data.
func (l *letter) setEvent(d pipeline.DeadLetter, withData bool) (dataBytes int, err error) {
	l.Event, dataBytes, err = eventJSON(d, withData)
	if err != nil && withData {
		l.Undecodable = d.Encoded
	}
	return dataBytes, err
}

// Validate refuses flags that cannot work together.
func (c *lsCommand) Validate() error {
	if c.Limit < 1 {
		return fmt.Errorf("--limit: %d; want at least 1", c.Limit)
	}
	if c.ShowData && !c.json() {
		return errors.New("--show-data: data may be anything and would break the table; give -o json too")
	}
	return nil
}

// Run lists dead letters.
func (c *lsCommand) Run(ctx context.Context, con *console) error {
	store, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	filter, err := c.filter(ctx, store, states(c.State)...)
	if err != nil {
		return err
	}
	walk, err := store.WalkLetters(ctx, filter)
	if err != nil {
		return err
	}
	table := newLetterTable(con, c.outputFlag)
	listed, more, err := walkLetters(ctx, con, walk, letterAmount{Limit: c.Limit}, "listed", func(limit int) (int, error) {
		letters, err := walk.List(ctx, limit, c.ShowData)
		if err != nil {
			return 0, err
		}
		return len(letters), table.add(letters, c.ShowData)
	})
	if err = errors.Join(err, table.flush()); err != nil {
		return err
	}
	if listed == 0 {
		_, err = fmt.Fprintln(con.err, "no dead letter matches")
		return err
	}
	if !more {
		return nil
	}
	_, err = fmt.Fprintf(con.err, "there may be more beyond --limit=%d: raise it, or go on with --since=%s\n",
		c.Limit, table.last.UTC().Format(time.RFC3339Nano))
	return err
}

// letterTable prints letters as they come: as a table, or one JSON object a line.
type letterTable struct {
	con  *console
	form outputFlag
	text *tabwriter.Writer
	last time.Time // failure of the last one
}

func newLetterTable(con *console, form outputFlag) *letterTable {
	t := &letterTable{con: con, form: form, text: tabwriter.NewWriter(con.out, 0, 0, 2, ' ', 0)}
	if !form.json() {
		_, _ = fmt.Fprintln(t.text, "position\tfailed at\tsink\tcode\tsource\ttype\tid\tseqnum\tstate\treason") // Flush tells
	}
	return t
}

func (t *letterTable) add(letters []pipeline.DeadLetter, withEvents bool) error {
	for _, d := range letters {
		t.last = d.FailedAt
		if !t.form.json() {
			_, _ = fmt.Fprintf(t.text, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\n", d.Position, d.FailedAt.UTC().Format(time.DateTime), d.Sink,
				oneLine(d.Code), oneLine(d.Source), oneLine(d.Type), oneLine(d.ID), d.Seqnum, d.State(), oneLine(d.Reason))
			continue
		}
		out := newLetter(d)
		if withEvents {
			_, _ = out.setEvent(d, true) // what cannot be decoded is printed as it is
		}
		if err := t.form.print(t.con, "", out); err != nil {
			return err
		}
	}
	return nil
}

func (t *letterTable) flush() error { return t.text.Flush() }

// errNothingLeft means that the row of an event was missing.
var errNothingLeft = errors.New("nothing is left of it")

// eventJSON is a letter's event as a sink gets it, seqnum included, in the CloudEvents JSON
// format, and the size of its data, which is left out unless it is asked for. An error says why a
// damaged one is no event.
func eventJSON(d pipeline.DeadLetter, withData bool) (event json.RawMessage, dataBytes int, err error) {
	if len(d.Encoded) == 0 {
		return nil, 0, errNothingLeft
	}
	ce := new(pb.CloudEvent)
	if err := proto.Unmarshal(d.Encoded, ce); err != nil {
		return nil, 0, fmt.Errorf("it cannot be decoded: %w", err)
	}
	if ce.Attributes == nil {
		ce.Attributes = map[string]*pb.CloudEventAttributeValue{}
	}
	ce.Attributes[pipeline.SeqnumAttribute] = &pb.CloudEventAttributeValue{
		Attr: &pb.CloudEventAttributeValue_CeString{CeString: fmt.Sprint(d.Seqnum)},
	}
	dataBytes = len(cloudevent.Data(ce))
	if !withData {
		ce.Data = nil
	}
	event, err = producer.AppendJSON(nil, ce)
	return event, dataBytes, err
}
