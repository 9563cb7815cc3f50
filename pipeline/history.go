package pipeline

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/encoding/protowire"
)

const (
	// historyBuffer bounds what the server sends ahead of a reader, bytes.
	historyBuffer = 8 << 20
	// historySilence is how long no message may come before the reader looks whether there are any
	// left: they may have been trimmed.
	historySilence = 2 * time.Second
	// historyResets bounds how often in a row the consumer is made anew: a stream that is gone would
	// be waited for without end.
	historyResets = 10
)

// History reads what the stream EVENTS keeps, for a replay. It changes nothing that the live path
// knows: it reads through a consumer without acks that the server keeps in memory and forgets, and
// by sequence.
type History struct {
	js     jetstream.JetStream
	stream jetstream.Stream

	// Created is when the stream was: sequences of another one mean nothing.
	Created time.Time
	// First and Last are the sequences that the stream has at the time of Queue.History; an empty
	// one has a Last below its First.
	First, Last uint64
}

// Logged is one message of the stream.
type Logged struct {
	Seq  uint64
	Lane int
	// Batch is what it carries; after ReadHeaders it has no events. nil: the message is corrupt.
	Batch *Batch
	Err   error // what is wrong with a corrupt one
}

// HistoryGapError says that messages are missing that a reader has not got to yet: they were trimmed
// or shed meanwhile.
type HistoryGapError struct {
	From, To uint64 // the first sequence that is missing and the first behind them
}

func (e *HistoryGapError) Error() string {
	return fmt.Sprintf("stream %s: the sequences %d to %d are not there any more", EventsStream, e.From, e.To-1)
}

// ErrHistoryLost means that the stream ends before the sequence that is to be read to: it was made
// anew, or has lost its newest part.
var ErrHistoryLost = errors.New("the stream ends earlier than it did")

// History looks at the stream as it is now.
func (q *Queue) History(ctx context.Context) (*History, error) {
	stream, err := q.js.Stream(ctx, EventsStream)
	if err != nil {
		return nil, notReady(err, "stream "+EventsStream)
	}
	info := stream.CachedInfo()
	h := &History{js: q.js, stream: stream, Created: info.Created, First: max(info.State.FirstSeq, 1), Last: info.State.LastSeq}
	if info.State.Msgs == 0 {
		h.First = h.Last + 1
	}
	return h, nil
}

// Oldest returns when the oldest message was queued, by Postgres's clock; false where there is none,
// or its headers are corrupt.
func (h *History) Oldest(ctx context.Context) (queued time.Time, ok bool, err error) {
	if h.First > h.Last {
		return time.Time{}, false, nil
	}
	msg, err := reader(ctx, h.stream, "events.*")(h.First)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return time.Time{}, false, nil
	}
	if err != nil {
		return time.Time{}, false, err
	}
	batch, err := parseHeaders(msg.Header)
	if err != nil {
		return time.Time{}, false, nil
	}
	return batch.QueuedAt, true, nil
}

// QueuedAt returns the sequence from which on everything lies that was queued at or after t, by
// Postgres's clock. Messages are in the order of that time but for less than the grace period, which
// the caller takes off t.
func (h *History) QueuedAt(ctx context.Context, t time.Time) (uint64, error) {
	state := jetstream.StreamState{FirstSeq: h.First, LastSeq: h.Last}
	return firstQueuedAt(state, t, reader(ctx, h.stream, "events.*"))
}

// Read calls visit with the messages of the sequences from and to and those between, in order. It
// ends with the first error of visit. A *HistoryGapError may be passed by reading on at its To.
func (h *History) Read(ctx context.Context, from, to uint64, visit func(Logged) error) error {
	return h.read(ctx, from, to, false, visit)
}

// ReadHeaders is Read for batches without their events: some 300 bytes a message.
func (h *History) ReadHeaders(ctx context.Context, from, to uint64, visit func(Logged) error) error {
	return h.read(ctx, from, to, true, visit)
}

// Message returns one message; a *HistoryGapError if it is not there any more.
func (h *History) Message(ctx context.Context, seq uint64) (Logged, error) {
	msg, err := h.stream.GetMsg(ctx, seq)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return Logged{}, &HistoryGapError{From: seq, To: seq + 1}
	}
	if err != nil {
		return Logged{}, fmt.Errorf("read message %d of %s: %w", seq, EventsStream, err)
	}
	m := newLogged(seq, msg.Subject)
	if m.Err == nil {
		m.Batch, m.Err = parseMessage(m.Lane, msg.Header, msg.Data)
	}
	return m, nil
}

func newLogged(seq uint64, subject string) Logged {
	lane, err := strconv.Atoi(strings.TrimPrefix(subject, "events."))
	if err != nil || eventSubject(lane) != subject || lane < 0 || lane >= MaxLanes {
		return Logged{Seq: seq, Lane: -1, Err: fmt.Errorf("subject %q: is not that of a lane", subject)}
	}
	return Logged{Seq: seq, Lane: lane}
}

func (h *History) read(ctx context.Context, from, to uint64, headersOnly bool, visit func(Logged) error) error {
	from = max(from, 1)
	if from > to {
		return nil
	}
	consumer, err := h.js.OrderedConsumer(ctx, EventsStream, jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: from, HeadersOnly: headersOnly,
		MaxResetAttempts: historyResets,
	})
	if err != nil {
		return fmt.Errorf("read %s from %d on: %w", EventsStream, from, err)
	}
	// A message that does not fit would be waited for without end.
	buffer := max(historyBuffer, 2*int(h.js.Conn().MaxPayload()))
	messages, err := consumer.Messages(jetstream.PullMaxBytes(buffer))
	if err != nil {
		return fmt.Errorf("read %s from %d on: %w", EventsStream, from, err)
	}
	defer messages.Stop()
	defer context.AfterFunc(ctx, messages.Stop)() // while the consumer is made anew nobody looks at ctx
	for next := from; next <= to; {
		m, err := h.next(ctx, messages)
		if err != nil {
			return fmt.Errorf("read %s from %d on: %w", EventsStream, next, err)
		}
		if m == nil {
			if err := h.missing(ctx, next, to); err != nil {
				return err
			}
			continue
		}
		logged, err := parseLogged(m, headersOnly)
		if err != nil {
			return err
		}
		if logged.Seq > next {
			return &HistoryGapError{From: next, To: min(logged.Seq, to+1)}
		}
		if logged.Seq < next {
			continue // the consumer was made anew by the client, which begins where it likes
		}
		if err := visit(logged); err != nil {
			return err
		}
		next++
	}
	return h.same(ctx)
}

// same fails if the stream is another one by now: the client makes its consumer anew on that, and what
// came under sequences of this one may be that one's.
func (h *History) same(ctx context.Context) (err error) {
	for range historyResets { // the server may be away for a moment
		var stream jetstream.Stream
		stream, err = h.js.Stream(ctx, EventsStream)
		switch {
		case err == nil:
			return h.sameAs(stream.CachedInfo())
		case errors.Is(err, jetstream.ErrStreamNotFound):
			return fmt.Errorf("%w: it was deleted", ErrHistoryLost)
		case ctx.Err() != nil:
			return ctx.Err()
		}
		pause(ctx, historySilence)
	}
	return fmt.Errorf("look whether stream %s is still the one that was read: %w", EventsStream, err)
}

func (h *History) sameAs(info *jetstream.StreamInfo) error {
	if info.Created.Equal(h.Created) {
		return nil
	}
	return fmt.Errorf("%w: it was made anew at %s", ErrHistoryLost, info.Created.UTC().Format(time.RFC3339))
}

// next returns the next message, or nil after a silence.
func (h *History) next(ctx context.Context, messages jetstream.MessagesContext) (jetstream.Msg, error) {
	wait, cancel := context.WithTimeout(ctx, historySilence)
	defer cancel()
	m, err := messages.Next(jetstream.NextContext(wait))
	switch {
	case err == nil:
		return m, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case wait.Err() != nil, errors.Is(err, jetstream.ErrNoHeartbeat):
		return nil, nil
	}
	return nil, err
}

// missing finds out why no message comes: the rest may have been trimmed, or lost.
func (h *History) missing(ctx context.Context, next, to uint64) error {
	stream, err := h.js.Stream(ctx, EventsStream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return fmt.Errorf("%w: it was deleted", ErrHistoryLost)
	}
	if err != nil {
		return nil // the server may be away for a moment; the consumer comes back by itself
	}
	info := stream.CachedInfo()
	if err := h.sameAs(info); err != nil {
		return err
	}
	switch {
	case info.State.LastSeq < to:
		return fmt.Errorf("%w: at %d, and not at %d", ErrHistoryLost, info.State.LastSeq, to)
	case info.State.FirstSeq > to || info.State.Msgs == 0:
		return &HistoryGapError{From: next, To: to + 1}
	}
	if _, err := reader(ctx, h.stream, "events.*")(next); errors.Is(err, jetstream.ErrMsgNotFound) {
		return &HistoryGapError{From: next, To: to + 1}
	}
	return nil
}

func parseLogged(m jetstream.Msg, headersOnly bool) (Logged, error) {
	meta, err := m.Metadata()
	if err != nil {
		return Logged{}, fmt.Errorf("read the metadata of a message: %w", err)
	}
	logged := newLogged(meta.Sequence.Stream, m.Subject())
	switch {
	case logged.Err != nil:
	case headersOnly:
		logged.Batch, logged.Err = parseHeaders(m.Headers())
		if logged.Err == nil {
			logged.Batch.Lane = logged.Lane
		}
	default:
		logged.Batch, logged.Err = parseMessage(logged.Lane, m.Headers(), m.Data())
	}
	return logged, nil
}

// Count is how many events the batch has, also where their encodings are left out.
func (b *Batch) Count() int { return max(b.count, len(b.Events)) }

// KeyOf reads source and type out of an event's encoding, without decoding the rest. An encoding
// that is malformed has what comes before the fault.
func KeyOf(encoded []byte) (source, typ string) {
	eachText(encoded, func(field protowire.Number, text []byte) {
		switch field { // of several the last one counts
		case sourceField:
			source = string(text)
		case typeField:
			typ = string(text)
		}
	})
	return source, typ
}

// IDOf reads the id out of an event's encoding, as KeyOf does the rest.
func IDOf(encoded []byte) (id string) {
	eachText(encoded, func(field protowire.Number, text []byte) {
		if field == idField {
			id = string(text)
		}
	})
	return id
}

// eachText visits the fields of a message that have a length, as far as it is well-formed.
func eachText(message []byte, visit func(field protowire.Number, text []byte)) {
	for len(message) > 0 {
		field, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return
		}
		size := protowire.ConsumeFieldValue(field, kind, message[n:])
		if size < 0 {
			return
		}
		if kind == protowire.BytesType {
			text, _ := protowire.ConsumeBytes(message[n : n+size])
			visit(field, text)
		}
		message = message[n+size:]
	}
}
