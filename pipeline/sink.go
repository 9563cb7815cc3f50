package pipeline

import (
	"context"
	"time"
)

// Verdict is what a sink did with one event.
type Verdict int

const (
	// Retry is the zero value on purpose: an event nobody spoke of was not delivered.
	Retry Verdict = iota
	// Delivered means that the sink has the event and will keep it.
	Delivered
	// Refused means that the sink will never take this event; it becomes a dead letter.
	Refused
)

// Result is a sink's word on one event.
type Result struct {
	Verdict Verdict
	Code    string // of a refusal: short, stable, upper snake case
	Reason  string // of a refusal or a retry: for people; never the payload
}

// Item is one event of a request.
type Item struct {
	Batch *Batch
	Index int // within the batch
}

// Encoded returns the CloudEvent's encoding.
func (i Item) Encoded() []byte { return i.Batch.Events[i.Index] }

// Limits say how many batches a lane worker merges into one request.
type Limits struct {
	Events int           // most events; one batch may exceed it alone
	Bytes  int           // most bytes of encoded events; one batch may exceed it alone
	Linger time.Duration // how long the first batch waits for company; 0: not at all
}

// Sink delivers events to one destination.
//
// Send is called by one worker per lane at a time, by several lanes at once. It tries
// once (splitting a request is part of trying; waiting and repeating is the worker's)
// and returns one Result per item, in order. An error means that the whole request is
// to be tried again, and says why; what some items got before the error is lost, so a
// sink that knows results of some items returns them with a nil error and Retry for
// the others. The first Send of a lane after a takeover, and any Send, may see batches
// that the destination already has.
//
// The items of one batch come together and in index order. On a first try the request
// holds whole batches; a retry holds only the items whose verdict was Retry.
//
// Send must return soon after ctx ends, with an error.
type Sink interface {
	// Name is the sink's name in Postgres's table of sinks.
	Name() string
	// Limits are read once, at start.
	Limits() Limits
	// Probe checks at start that the destination behaves as the sink needs.
	Probe(ctx context.Context) error
	Send(ctx context.Context, lane int, items []Item) ([]Result, error)
}
