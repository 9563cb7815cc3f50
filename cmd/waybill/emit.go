package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/waybillhq/waybill/internal/producer"
	"github.com/waybillhq/waybill/pipeline"
)

// emitCommand sends events: made from flags, or read from standard input.
type emitCommand struct {
	Input string `arg:"" optional:"" env:"-" help:"-: read NDJSON of structured CloudEvents from standard input."`

	To       string        `env:"WAYBILL_TO" aliases:"url" default:"${emit_to}" help:"An ingest: http://host:port, or host:port (also grpc://, grpcs://) for gRPC."`
	Outbox   string        `env:"WAYBILL_EMIT_OUTBOX" secret:"" want:"postgres" placeholder:"URL" help:"Postgres of a pipeline, into whose outbox the events go instead (docs/outbox.md), each request in a transaction of its own."`
	RetryFor time.Duration `env:"WAYBILL_EMIT_RETRY_FOR" want:"not-negative" default:"1m" help:"How long an event is sent again that is not refused and not accepted either."`
	Batch    int           `env:"-" default:"100" help:"Most events of one request."`

	Source      string            `env:"-" default:"/waybill/emit" help:"Source of the events."`
	Type        string            `env:"-" default:"waybill.emit" help:"Type of the events."`
	Subject     string            `env:"-" help:"Subject of the events."`
	ID          string            `env:"-" name:"id" help:"Id of a single event. Default: a new UUID each."`
	Extension   map[string]string `env:"-" placeholder:"NAME=VALUE" help:"Extension attributes."`
	Data        *string           `env:"-" xor:"data" help:"Data of the events. Default: a small JSON object that counts them."`
	DataFile    string            `env:"-" xor:"data" type:"existingfile" help:"File with the data of the events."`
	ContentType string            `env:"-" default:"application/json" help:"Content type of the data."`
	Count       *int              `env:"-" help:"Number of events; 0: without end. Default: 1, and with --every without end."`
	Every       time.Duration     `env:"-" want:"not-negative" default:"0s" help:"Send one event each time this has passed; 0: all at once."`
	outputFlag
}

// emitResult is what became of the events, as -o json prints it.
type emitResult struct {
	Accepted    int `json:"accepted"`
	NotAccepted int `json:"not_accepted"`
}

// Run sends the events. It fails if one was not accepted.
func (c *emitCommand) Run(ctx context.Context, con *console) error {
	sender, closeSender, err := c.sender()
	if err != nil {
		return err
	}
	defer closeSender()
	e := &emitter{sender: sender, patience: c.RetryFor, errors: con.err, place: c.place()}
	switch {
	case c.Input == "-":
		err = e.sendLines(ctx, con.in, c.Batch)
	case c.Every > 0:
		err = c.tick(ctx, e)
	default:
		err = c.sendAll(ctx, e)
	}
	err = errors.Join(err, c.print(con, plural(e.accepted, "event")+" accepted", emitResult{Accepted: e.accepted, NotAccepted: e.failed}))
	if err == nil && e.failed > 0 {
		err = e.failure()
	}
	return err
}

// place is where the events go.
func (c *emitCommand) place() emitPlace {
	if c.Outbox != "" {
		const setting = "--outbox (WAYBILL_EMIT_OUTBOX)"
		return emitPlace{what: "the outbox", remedy: "start Postgres there, or correct host and port in " + setting}
	}
	to := c.To
	if strings.Contains(to, "@") {
		to = redactedURL(to)
	}
	return emitPlace{
		what: "an ingest at " + to, act: "connect to an ingest at " + to + ": ",
		remedy: "start one there (`make run` or `waybill dev` starts a whole system), or name another with --to (WAYBILL_TO)",
	}
}

// ofMade are the flags of events that are made here, and not read.
var ofMade = []string{"source", "type", "subject", "id", "extension", "data", "data-file", "content-type", "count", "every"}

// Validate refuses flags that cannot work.
func (c *emitCommand) Validate(parsed *kong.Context) error {
	if c.Input == "-" {
		for _, p := range parsed.Path {
			if p.Flag != nil && !p.Resolved && slices.Contains(ofMade, p.Flag.Name) {
				return fmt.Errorf("--%s: is of events that flags make, and the lines of standard input are whole events: leave it out, or the -", p.Flag.Name)
			}
		}
	}
	switch {
	case c.Input != "" && c.Input != "-":
		return fmt.Errorf("%q: want flags alone, or - for events of standard input, one in JSON a line: waybill emit - <FILE; --data and --data-file are for the data of one", c.Input)
	case c.Count != nil && *c.Count < 0:
		return fmt.Errorf("--count: %d; want a number of events, or 0 for no end", *c.Count)
	case c.Count != nil && *c.Count == 0 && c.Every == 0:
		return errors.New("--count=0 has no end: say how often with --every, such as --every=1s")
	case c.ID != "" && (c.Every > 0 || c.Count != nil && *c.Count != 1):
		return errors.New("--id: is of one event; several need ids of their own")
	case c.Batch < 1:
		return fmt.Errorf("--batch: %d; want at least 1", c.Batch)
	}
	return nil
}

// Check refuses what cannot be sent, and where to nothing can.
func (c *emitCommand) Check() error {
	_, closeSender, err := c.sender()
	if err != nil {
		return err
	}
	closeSender()
	if c.Input == "-" {
		return nil
	}
	ce, err := c.event(1)
	if err != nil {
		return err
	}
	_, err = pipeline.NewEvent(ce, pipeline.DefaultMaxEventBytes*16) // the server has its own limit
	if invalid := (*pipeline.InvalidEventError)(nil); errors.As(err, &invalid) {
		if _, ok := c.Extension[invalid.Attribute]; ok {
			err = fmt.Errorf("--extension: %w", err)
		}
	}
	return err
}

// sender dials nothing yet.
func (c *emitCommand) sender() (producer.Sender, func(), error) {
	if c.Outbox != "" {
		o, err := producer.NewOutbox(c.Outbox)
		if err != nil {
			return nil, nil, fmt.Errorf("--outbox: %w", err)
		}
		return o, o.Close, nil
	}
	if strings.HasPrefix(c.To, "http://") || strings.HasPrefix(c.To, "https://") {
		h, err := producer.NewHTTP(c.To, false)
		if err != nil {
			return nil, nil, fmt.Errorf("--to: %w", err)
		}
		return h, h.Close, nil
	}
	addr, secure := strings.CutPrefix(c.To, "grpcs://")
	addr = strings.TrimPrefix(addr, "grpc://")
	if strings.Contains(addr, "/") || !strings.Contains(addr, ":") {
		return nil, nil, fmt.Errorf("--to: %q; want http://host:port, or host:port for gRPC", c.To)
	}
	g, err := producer.NewGRPC(addr, secure, false)
	if err != nil {
		return nil, nil, fmt.Errorf("--to: %w", err)
	}
	return g, func() { _ = g.Close() }, nil // every answer has been read
}

// event makes the nth event, from 1.
func (c *emitCommand) event(n int) (*pb.CloudEvent, error) {
	data, err := c.data(n)
	if err != nil {
		return nil, err
	}
	ce := &pb.CloudEvent{
		Id: c.ID, Source: c.Source, Type: c.Type, SpecVersion: "1.0",
		Attributes: map[string]*pb.CloudEventAttributeValue{
			"time": {Attr: &pb.CloudEventAttributeValue_CeTimestamp{CeTimestamp: timestamppb.Now()}},
		},
		Data: &pb.CloudEvent_BinaryData{BinaryData: data},
	}
	if ce.Id == "" {
		ce.Id = uuid.NewString()
	}
	if c.ContentType != "" {
		ce.Attributes["datacontenttype"] = textValue(c.ContentType)
	}
	if c.Subject != "" {
		ce.Attributes["subject"] = textValue(c.Subject)
	}
	for name, value := range c.Extension {
		ce.Attributes[name] = textValue(value)
	}
	return ce, nil
}

func textValue(s string) *pb.CloudEventAttributeValue {
	return &pb.CloudEventAttributeValue{Attr: &pb.CloudEventAttributeValue_CeString{CeString: s}}
}

func (c *emitCommand) data(n int) ([]byte, error) {
	data := fmt.Appendf(nil, `{"n":%d}`, n)
	if c.Data != nil {
		data = []byte(*c.Data)
	}
	if c.DataFile != "" {
		var err error
		if data, err = os.ReadFile(c.DataFile); err != nil {
			return nil, fmt.Errorf("--data-file: %w", err)
		}
	}
	if c.ContentType == "application/json" && !json.Valid(data) {
		where := "--data"
		if c.DataFile != "" {
			where = "--data-file: " + c.DataFile
		}
		return nil, fmt.Errorf("%s: is not valid JSON; correct it, or say what it is with --content-type", where)
	}
	return data, nil
}

// sendAll sends the events at once, in batches.
func (c *emitCommand) sendAll(ctx context.Context, e *emitter) error {
	count := 1
	if c.Count != nil {
		count = *c.Count
	}
	for from := 1; from <= count && ctx.Err() == nil; from += c.Batch {
		var batch []emission
		for n := from; n < from+c.Batch && n <= count; n++ {
			ce, err := c.event(n)
			if err != nil {
				return err
			}
			batch = append(batch, emission{event: ce, name: fmt.Sprintf("event %d", n)})
		}
		e.send(ctx, batch)
	}
	return notInterrupted(ctx)
}

// tick sends an event at once and then each time the interval has passed. To be interrupted
// is its proper end, if it has no other.
func (c *emitCommand) tick(ctx context.Context, e *emitter) error {
	ticker := time.NewTicker(c.Every)
	defer ticker.Stop()
	endless := c.Count == nil || *c.Count == 0
	for n := 1; endless || n <= *c.Count; n++ {
		ce, err := c.event(n)
		if err != nil {
			return err
		}
		e.send(ctx, []emission{{event: ce, name: fmt.Sprintf("event %d", n)}})
		if e.failed > 0 || (!endless && n == *c.Count) {
			return nil // Run says so
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			if endless {
				return nil
			}
			return notInterrupted(ctx)
		}
	}
	return nil
}

func notInterrupted(ctx context.Context) error {
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	return nil
}

// emission is an event and what to call it in a message.
type emission struct {
	event *pb.CloudEvent
	name  string
}
