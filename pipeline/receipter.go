package pipeline

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/cenkalti/backoff/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/waybillhq/waybill/pipeline/failpoint"
)

// Bounds of a receipt. A refusal travels to dead_letters, where people read it.
const (
	maxReceiptMessage = 512 << 10
	maxRefusalCode    = 64
	maxRefusalReason  = 1 << 10
)

const (
	// receiptTimeout bounds one attempt to store receipts.
	receiptTimeout = 5 * time.Second
	// receiptLinger is how long a receipt waits for those of other lanes. Nobody waits for it but
	// its own lane, whose events meanwhile gather: at one event a batch, a message, an
	// acknowledgement and a request for each would take most of the machine.
	receiptLinger = 5 * time.Millisecond
)

// receipter stores the receipts of all workers of a forwarder in RECEIPTS: those that come
// within receiptLinger, or while others are being stored, go in one message.
type receipter struct {
	js      jetstream.JetStream
	metrics *producerMetrics
	wake    chan struct{} // capacity 1

	mu      sync.Mutex // guards what follows
	waiting []*parcel
}

// parcel is what one worker has to say.
type parcel struct {
	lines   [][]byte // each a Receipt
	done    chan struct{}
	gone    <-chan struct{} // closed when the worker no longer waits
	trouble func(error)     // is told how the newest attempt went
	left    int             // lines that are not stored; of run
}

func newReceipter(js jetstream.JetStream, m *producerMetrics) *receipter {
	return &receipter{js: js, metrics: m, wake: make(chan struct{}, 1)}
}

// store returns once all batches are receipted, or with ctx's error; trouble is told how each
// attempt went. It never gives up before: the events were delivered, and sending them
// again for want of room in RECEIPTS would only add to the trouble.
func (r *receipter) store(ctx context.Context, sink string, lane int, batches []BatchReceipt, trouble func(error)) error {
	lines, err := encodeReceipts(sink, lane, batches)
	if err != nil {
		return err
	}
	p := &parcel{lines: lines, done: make(chan struct{}), gone: ctx.Done(), trouble: trouble, left: len(lines)}
	r.mu.Lock()
	r.waiting = append(r.waiting, p)
	r.mu.Unlock()
	signal(r.wake)
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("store receipt: %w", context.Cause(ctx))
	}
}

// run stores what comes until ctx ends, which must be when no worker waits any more.
func (r *receipter) run(ctx context.Context) {
	for {
		select {
		case <-r.wake:
		case <-ctx.Done():
			return
		}
		pause(ctx, receiptLinger)
		r.mu.Lock()
		parcels := r.waiting
		r.waiting = nil
		r.mu.Unlock()
		for _, m := range pack(parcels) {
			r.deliver(ctx, m)
		}
	}
}

// receiptMessage is a message of receipts, a line each.
type receiptMessage struct {
	body    []byte
	parcels []*parcel // one for each line
}

// pack makes messages of at most maxReceiptMessage bytes, each of whole lines.
func pack(parcels []*parcel) []receiptMessage {
	var messages []receiptMessage
	var m receiptMessage
	for _, p := range parcels {
		for _, line := range p.lines {
			if len(m.body) > 0 && len(m.body)+1+len(line) > maxReceiptMessage {
				messages = append(messages, m)
				m = receiptMessage{}
			}
			if len(m.body) > 0 {
				m.body = append(m.body, '\n')
			}
			m.body = append(m.body, line...)
			m.parcels = append(m.parcels, p)
		}
	}
	if len(m.body) > 0 {
		messages = append(messages, m)
	}
	return messages
}

// deliver stores a message, however long that takes, unless nobody waits for it any more.
func (r *receipter) deliver(ctx context.Context, m receiptMessage) {
	msg := &nats.Msg{Subject: receiptsSubject, Data: m.body, Header: nats.Header{
		// One id for all attempts: inside the window it is stored once.
		nats.MsgIdHdr: {nuid.Next()},
	}}
	pauses := newBackoff(100*time.Millisecond, 2*time.Second)
	for m.awaited() && ctx.Err() == nil {
		err := r.try(ctx, msg)
		m.tell(err)
		if err == nil {
			m.stored()
			return
		}
		pause(ctx, pauses.NextBackOff())
	}
}

// awaited reports whether a worker waits for the message.
func (m receiptMessage) awaited() bool {
	return slices.ContainsFunc(m.parcels, func(p *parcel) bool {
		select {
		case <-p.gone:
			return false
		default:
			return true
		}
	})
}

func (m receiptMessage) tell(err error) {
	for i, p := range m.parcels {
		if i == 0 || p != m.parcels[i-1] {
			p.trouble(err)
		}
	}
}

func (m receiptMessage) stored() {
	for _, p := range m.parcels {
		if p.left--; p.left == 0 {
			close(p.done)
		}
	}
}

func (r *receipter) try(ctx context.Context, m *nats.Msg) error {
	ctx, cancel := context.WithTimeout(ctx, receiptTimeout)
	defer cancel()
	failpoint.Hit("forwarder/before-receipt")
	began := time.Now()
	_, err := r.js.PublishMsg(ctx, m, jetstream.WithRetryAttempts(0), jetstream.WithExpectStream(ReceiptsStream))
	err = failpoint.Err("forwarder/after-receipt", err)
	r.metrics.published(ReceiptsStream, time.Since(began), err)
	if err != nil {
		return fmt.Errorf("store receipt: %w", err)
	}
	return nil
}

func newBackoff(initial, longest time.Duration) *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval, b.Multiplier = initial, longest, 2
	b.Reset()
	return b
}

// encodeReceipts splits the receipt for some batches into lines of at most
// maxReceiptMessage bytes. The receipt of one batch is never split: the first part would
// settle the batch, and the refusals of the second would come too late.
func encodeReceipts(sink string, lane int, batches []BatchReceipt) ([][]byte, error) {
	var lines [][]byte
	var part []json.RawMessage
	size := 0
	flush := func() error {
		if len(part) == 0 {
			return nil
		}
		body, err := encodeJSON(struct {
			Sink    string            `json:"sink"`
			Lane    int               `json:"lane"`
			Batches []json.RawMessage `json:"batches"`
		}{sink, lane, part})
		lines, part, size = append(lines, body), nil, 0
		return err
	}
	for _, b := range batches {
		encoded, err := encodeBatchReceipt(b)
		if err != nil {
			return nil, err
		}
		if size+len(encoded) > maxReceiptMessage-256 {
			if err := flush(); err != nil {
				return nil, err
			}
		}
		part = append(part, encoded)
		size += len(encoded) + 1
	}
	err := flush()
	return lines, err
}

// encodeBatchReceipt leaves out what is traced, and then shortens the reasons, until the receipt of a
// batch fits a line.
func encodeBatchReceipt(b BatchReceipt) ([]byte, error) {
	longest := maxRefusalReason
	for {
		encoded, err := encodeJSON(b)
		if err != nil || len(encoded) <= maxReceiptMessage-256 || longest == 0 {
			return encoded, err
		}
		if b.Traced != nil {
			b.Traced = nil
			continue
		}
		longest /= 4
		if longest < 16 {
			longest = 0
		}
		shorter := make([]Refusal, len(b.Refused))
		for i, r := range b.Refused {
			shorter[i] = Refusal{Index: r.Index, Code: r.Code, Reason: plainText(r.Reason, longest)}
		}
		b.Refused = shorter
	}
}

// encodeJSON encodes without escaping for HTML, which can grow a text sixfold.
func encodeJSON(v any) ([]byte, error) {
	var buf bytes.Buffer
	e := json.NewEncoder(&buf)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, fmt.Errorf("encode receipt: %w", err)
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

// plainText makes what a sink or its destination wrote fit for Postgres: valid UTF-8
// without NUL, of at most limit bytes.
func plainText(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit]
		for s != "" && !utf8.ValidString(s[max(0, len(s)-utf8.UTFMax):]) && len(s) > limit-utf8.UTFMax {
			s = s[:len(s)-1] // a character cut in two
		}
	}
	s = strings.ToValidUTF8(s, "?")
	return strings.ReplaceAll(s, "\x00", "?")
}
