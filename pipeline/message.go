package pipeline

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// Headers of a message on EVENTS. Times are Postgres's clock, in microseconds since 1970.
// Together with the body, one chipingress.pb.CloudEventBatch, they are all a forwarder
// ever learns of a batch.
const (
	headerBatch    = "Waybill-Batch"    // <number>.<token>
	headerAttempt  = "Waybill-Attempt"  // 0, 1, …
	headerEvents   = "Waybill-Events"   // number of events in the body
	headerAccepted = "Waybill-Accepted" // µs
	headerQueued   = "Waybill-Queued"   // µs
	headerExpires  = "Waybill-Expires"  // µs; absent: never
	headerSinks    = "Waybill-Sinks"    // comma-separated; absent: all
	headerOrigin   = "Waybill-Origin"   // <number>.<token>/<index> of a requeued event
	// Of a requeued event whose lane is no more; absent: the message's own.
	headerOriginLane = "Waybill-Origin-Lane"
)

// maxHeaderBytes is more than the headers of any message take: batch, origin and message
// ids, numbers, and the names of the sinks.
const maxHeaderBytes = 8 << 10

// EventHeadroom is what a server's max_payload must allow beyond the event limit.
const EventHeadroom = 64 << 10

// message turns a batch and its body into what is published.
func (b *Batch) message(body []byte) *nats.Msg {
	h := nats.Header{
		headerBatch:    {b.ID.String()},
		headerAttempt:  {strconv.Itoa(b.Attempt)},
		headerEvents:   {strconv.Itoa(b.count)},
		headerAccepted: {micros(b.AcceptedAt)},
		headerQueued:   {micros(b.QueuedAt)},
		// An optimisation only: inside the window a repeated publish is stored once.
		nats.MsgIdHdr: {b.ID.String() + "." + strconv.Itoa(b.Attempt)},
	}
	if !b.ExpiresAt.IsZero() {
		h[headerExpires] = []string{micros(b.ExpiresAt)}
	}
	if b.Sinks != nil {
		h[headerSinks] = []string{strings.Join(b.Sinks, ",")}
	}
	if b.Origin != nil {
		h[headerOrigin] = []string{fmt.Sprintf("%s/%d", b.Origin.Batch, b.Origin.Index)}
		if b.OriginLane != b.Lane {
			h[headerOriginLane] = []string{strconv.Itoa(b.OriginLane)}
		}
	}
	return &nats.Msg{Subject: eventSubject(b.Lane), Header: h, Data: body}
}

// parseMessage is the inverse of message. An error means that the message is corrupt: its
// batch is in Postgres and will be sent again.
func parseMessage(lane int, h nats.Header, body []byte) (*Batch, error) {
	b, err := parseHeaders(h)
	if err != nil {
		return nil, err
	}
	b.Lane = lane
	if b.Origin != nil && h.Get(headerOriginLane) == "" {
		b.OriginLane = lane
	}
	if b.Events, err = splitBody(body, b.count); err != nil {
		return nil, fmt.Errorf("body: %w", err)
	}
	if len(b.Events) != b.count {
		return nil, fmt.Errorf("body: %d events, and the header says %d", len(b.Events), b.count)
	}
	return b, nil
}

// parseHeaders reads what the headers say of a batch, without its events.
func parseHeaders(h nats.Header) (*Batch, error) {
	b := &Batch{}
	var err error
	if b.ID, err = ParseBatchID(h.Get(headerBatch)); err != nil {
		return nil, fmt.Errorf("header %s: %w", headerBatch, err)
	}
	p := headerParser{h: h}
	b.Attempt = int(p.number(headerAttempt))
	b.count = int(p.number(headerEvents))
	b.AcceptedAt = p.time(headerAccepted)
	b.QueuedAt = p.time(headerQueued)
	if h.Get(headerExpires) != "" {
		b.ExpiresAt = p.time(headerExpires)
	}
	if h.Get(headerOriginLane) != "" {
		b.OriginLane = int(p.number(headerOriginLane))
	}
	if p.err != nil {
		return nil, p.err
	}
	b.hop = h.Get(headerTrace)
	if s := h.Get(headerSinks); s != "" {
		b.Sinks = strings.Split(s, ",")
	}
	if o := h.Get(headerOrigin); o != "" {
		if b.Origin, err = parseOrigin(o); err != nil {
			return nil, fmt.Errorf("header %s: %w", headerOrigin, err)
		}
	}
	if b.OriginLane < 0 || b.OriginLane >= MaxLanes {
		return nil, fmt.Errorf("header %s: %d; want 0 to %d", headerOriginLane, b.OriginLane, MaxLanes-1)
	}
	if b.count < 1 || b.count > MaxBatchEvents {
		return nil, fmt.Errorf("header %s: %d events; want 1 to %d", headerEvents, b.count, MaxBatchEvents)
	}
	return b, nil
}

type headerParser struct {
	h   nats.Header
	err error
}

func (p *headerParser) number(name string) int64 {
	n, err := strconv.ParseInt(p.h.Get(name), 10, 64)
	if err != nil && p.err == nil {
		p.err = fmt.Errorf("header %s: %q is not a number", name, p.h.Get(name))
	}
	return n
}

func (p *headerParser) time(name string) time.Time { return time.UnixMicro(p.number(name)).UTC() }

func parseOrigin(s string) (*Origin, error) {
	id, index, ok := strings.Cut(s, "/")
	if !ok {
		return nil, errors.New("want <number>.<token>/<index>")
	}
	batch, err := ParseBatchID(id)
	if err != nil {
		return nil, err
	}
	i, err := strconv.Atoi(index)
	if err != nil || i < 0 || i >= MaxBatchEvents {
		return nil, fmt.Errorf("index %q is out of range", index)
	}
	return &Origin{Batch: batch, Index: i}, nil
}

func micros(t time.Time) string { return strconv.FormatInt(t.UnixMicro(), 10) }
