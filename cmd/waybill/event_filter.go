package main

import (
	"encoding/json"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"

	"github.com/waybillhq/waybill/internal/expect"
	"github.com/waybillhq/waybill/internal/producer"
	"github.com/waybillhq/waybill/pipeline"
)

// eventFilter picks events of the stream.
type eventFilter struct {
	expect.Filter
	Since timePoint `env:"-" placeholder:"TIME" help:"Begin with what was queued at or after this, as far as the stream keeps it: a time such as 2026-11-25T08:00:00Z, or how long ago, such as 2h. Default: with what comes from now on."`
}

// streamedEvent is an event of the stream as -o json prints it.
type streamedEvent struct {
	Lane int `json:"lane"`
	// Seq is the stream's, Attempt 0 unless the batch was retransmitted.
	Seq      uint64          `json:"stream_sequence"`
	Batch    string          `json:"batch"`
	Position int64           `json:"position"`
	Attempt  int             `json:"attempt"`
	Accepted string          `json:"accepted_at"`
	Queued   string          `json:"queued_at"`
	Sinks    []string        `json:"sinks,omitempty"` // that it is meant for; absent: all
	Event    json.RawMessage `json:"event"`
}

// timeForm is RFC 3339 with microseconds, Postgres's precision.
const timeForm = "2006-01-02T15:04:05.000000Z07:00"

func newStreamedEvent(b pipeline.TailedBatch, index int, ce *pb.CloudEvent, withData bool) (streamedEvent, error) {
	s := streamedEvent{
		Lane: b.Lane, Seq: b.Seq, Batch: b.ID.String(), Position: b.Position(index), Attempt: b.Attempt,
		Accepted: b.AcceptedAt.UTC().Format(timeForm), Queued: b.QueuedAt.UTC().Format(timeForm), Sinks: b.Sinks,
	}
	if !withData {
		ce.Data = nil
	}
	var err error
	s.Event, err = producer.AppendJSON(nil, ce)
	return s, err
}
