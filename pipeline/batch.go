package pipeline

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// indexBits is how much of a position numbers the event within its batch.
const indexBits = 12

// MaxBatchEvents is how many events one batch holds at most.
const MaxBatchEvents = 1 << indexBits

// DefaultLanes is the number of lanes of a pipeline unless it is created otherwise.
const DefaultLanes = 16

// MaxLanes bounds the number of consumers and workers.
const MaxLanes = 256

// BatchID names a batch. The number comes from a sequence that a restore may set back;
// the random token keeps the second use of a number apart from the first. Whatever
// matches batches matches both.
type BatchID struct {
	Number int64
	Token  uint64
}

// String is <number>.<token in 16 hexadecimal digits>, the form of headers, receipts
// and archive frames.
func (id BatchID) String() string { return fmt.Sprintf("%d.%016x", id.Number, id.Token) }

// ParseBatchID reads what String wrote.
func ParseBatchID(s string) (BatchID, error) {
	number, token, ok := strings.Cut(s, ".")
	if !ok || len(token) != 16 {
		return BatchID{}, fmt.Errorf("batch id %q: want <number>.<16 hexadecimal digits>", s)
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 1 {
		return BatchID{}, fmt.Errorf("batch id %q: the number is not a positive integer", s)
	}
	t, err := strconv.ParseUint(token, 16, 64)
	if err != nil {
		return BatchID{}, fmt.Errorf("batch id %q: the token is not hexadecimal", s)
	}
	return BatchID{Number: n, Token: t}, nil
}

// Position returns the primary key of an event: batch << 12 | index.
func Position(batch int64, index int) int64 { return batch<<indexBits | int64(index) }

// SplitPosition is the inverse of Position.
func SplitPosition(position int64) (batch int64, index int) {
	return position >> indexBits, int(position & (MaxBatchEvents - 1))
}

// LaneOf returns the lane of a key: fnv32a(source, 0, type) mod lanes.
func LaneOf(source, typ string, lanes int) int {
	const offset, prime = 2166136261, 16777619
	h := uint32(offset)
	for i := range len(source) {
		h = (h ^ uint32(source[i])) * prime
	}
	h *= prime // the zero byte between the two
	for i := range len(typ) {
		h = (h ^ uint32(typ[i])) * prime
	}
	return int(h % uint32(lanes))
}

// Batch is what one flush put into one lane: it travels, is tracked and is
// retransmitted as one. As a sink sees it, it came out of a JetStream message.
type Batch struct {
	ID      BatchID
	Lane    int
	Attempt int // 0 when ingest published it, counted up by each retransmit

	// All three by Postgres's clock, in UTC, with microseconds.
	AcceptedAt time.Time // of a requeued event: when it was first accepted
	QueuedAt   time.Time // start of the transaction that led to this message
	ExpiresAt  time.Time // zero: never

	// Origin is set in the batch of a requeued dead letter, which holds one event.
	Origin *Origin
	// OriginLane is the lane that the event was in then: Lane, unless the pipeline has that
	// one no more.
	OriginLane int

	// Sinks that a retransmit is meant for; nil means all.
	Sinks []string

	// Events are the encodings of the CloudEvents, seqnum included, in index order.
	Events [][]byte

	// count is the number of events, known before a body is split.
	count int

	traced []tracedMember // where it is published: its sampled events
	hop    string         // where it comes in: its message's traceparent; empty: nobody traces it
}

// Origin says which event of which earlier batch a requeued one is.
type Origin struct {
	Batch BatchID
	Index int
}

// For reports whether the batch is meant for the named sink.
func (b *Batch) For(sink string) bool {
	if b.Sinks == nil {
		return true
	}
	for _, s := range b.Sinks {
		if s == sink {
			return true
		}
	}
	return false
}

// Position returns the position of the batch's event at index.
func (b *Batch) Position(index int) int64 { return Position(b.ID.Number, index) }
