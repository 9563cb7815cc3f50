package pipeline

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

// Receipt is a forwarder's word that a sink took some batches, each named by number and
// token and never as a range, and which of their events it refused for good.
type Receipt struct {
	Sink    string         `json:"sink"`
	Lane    int            `json:"lane"`
	Batches []BatchReceipt `json:"batches"`
}

// BatchReceipt is the part of a receipt that speaks of one batch.
type BatchReceipt struct {
	ID      BatchID   `json:"batch"`
	Refused []Refusal `json:"refused,omitempty"`
	// Traced are events whose settling is to be traced. Nothing else depends on them.
	Traced tracedEvents `json:"traced,omitempty"`
}

// Refusal is one event of a batch that the sink will never take.
type Refusal struct {
	Index  int    `json:"index"`
	Code   string `json:"code"`
	Reason string `json:"reason"`
}

// MarshalText and UnmarshalText let a BatchID stand in JSON as its String.
func (id BatchID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (id *BatchID) UnmarshalText(text []byte) error {
	parsed, err := ParseBatchID(string(text))
	if err != nil {
		return err
	}
	*id = parsed
	return nil
}

// parseReceipts reads a message of RECEIPTS: a receipt a line.
func parseReceipts(data []byte) ([]Receipt, error) {
	var receipts []Receipt
	for line := range bytes.SplitSeq(data, []byte("\n")) {
		r, err := parseReceipt(line)
		if err != nil {
			return nil, err
		}
		receipts = append(receipts, r)
	}
	return receipts, nil
}

func parseReceipt(data []byte) (Receipt, error) {
	var r Receipt
	if err := json.Unmarshal(data, &r); err != nil {
		return r, fmt.Errorf("receipt: %w", err)
	}
	if r.Sink == "" || len(r.Batches) == 0 {
		return r, fmt.Errorf("receipt: names no sink or no batch")
	}
	for _, b := range r.Batches {
		if b.ID.Number < 1 {
			return r, fmt.Errorf("receipt: a batch without an id")
		}
		for i, f := range b.Refused {
			if f.Index < 0 || f.Index >= MaxBatchEvents {
				return r, fmt.Errorf("receipt: batch %v: index %d is out of range", b.ID, f.Index)
			}
			b.Refused[i].Code, b.Refused[i].Reason = postgresText(f.Code), postgresText(f.Reason)
		}
	}
	return r, nil
}

// postgresText makes a sink's words fit a text column, which holds valid UTF-8 without NUL.
func postgresText(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}
