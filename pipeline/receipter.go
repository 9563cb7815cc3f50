package pipeline

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
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

// receiptTimeout bounds one attempt to store a receipt.
const receiptTimeout = 5 * time.Second

// receipter stores receipts in RECEIPTS.
type receipter struct {
	js      jetstream.JetStream
	metrics *sinkMetrics
	// trouble is told how the newest attempt went.
	trouble func(error)
}

// store returns once all batches are receipted, in as many messages as it takes, or with
// ctx's error. It never gives up before: the events were delivered, and sending them
// again for want of room in RECEIPTS would only add to the trouble.
func (r *receipter) store(ctx context.Context, sink string, lane int, batches []BatchReceipt) error {
	messages, err := encodeReceipts(sink, lane, batches)
	if err != nil {
		return err
	}
	pauses := newBackoff(100*time.Millisecond, 2*time.Second)
	for _, body := range messages {
		m := &nats.Msg{Subject: receiptsSubject, Data: body, Header: nats.Header{
			// One id for all attempts: inside the window it is stored once.
			nats.MsgIdHdr: {nuid.Next()},
		}}
		for err := r.try(ctx, m); err != nil; err = r.try(ctx, m) {
			if ctx.Err() != nil {
				return fmt.Errorf("store receipt: %w", context.Cause(ctx))
			}
			r.metrics.receiptFail.Add(ctx, 1, r.metrics.sink)
			r.trouble(err)
			pause(ctx, pauses.NextBackOff())
		}
		r.trouble(nil)
		pauses.Reset()
	}
	r.metrics.receipts.Add(ctx, int64(len(batches)), r.metrics.sink)
	return nil
}

func (r *receipter) try(ctx context.Context, m *nats.Msg) error {
	ctx, cancel := context.WithTimeout(ctx, receiptTimeout)
	defer cancel()
	failpoint.Hit("forwarder/before-receipt")
	_, err := r.js.PublishMsg(ctx, m, jetstream.WithRetryAttempts(0), jetstream.WithExpectStream(ReceiptsStream))
	err = failpoint.Err("forwarder/after-receipt", err)
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

// encodeReceipts splits the receipt for some batches into messages of at most
// maxReceiptMessage bytes. The receipt of one batch is never split: the first part would
// settle the batch, and the refusals of the second would come too late.
func encodeReceipts(sink string, lane int, batches []BatchReceipt) ([][]byte, error) {
	var messages [][]byte
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
		messages, part, size = append(messages, body), nil, 0
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
	return messages, err
}

// encodeBatchReceipt shortens the reasons until the receipt of a batch fits one message.
func encodeBatchReceipt(b BatchReceipt) ([]byte, error) {
	longest := maxRefusalReason
	for {
		encoded, err := encodeJSON(b)
		if err != nil || len(encoded) <= maxReceiptMessage-256 || longest == 0 {
			return encoded, err
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
