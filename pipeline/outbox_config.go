package pipeline

import "fmt"

// OutboxConfig says whether and how an ingester takes events out of the outbox, into which
// transactions emit (EmitTx, the SQL function waybill.emit).
type OutboxConfig struct {
	// Take: it does, beside any others that do. It needs a connection of its own, on which it can
	// listen and hold locks: no pooler that shares sessions.
	Take bool
	// MaxEventBytes bounds the encoding of an event; a larger one is refused, and stays in the outbox.
	MaxEventBytes int
	// IdentifyBy is the pipeline's dedupe attribute; empty: events are identified by their id.
	IdentifyBy string
}

// DefaultOutboxConfig takes events of up to DefaultMaxEventBytes.
func DefaultOutboxConfig() OutboxConfig {
	return OutboxConfig{Take: true, MaxEventBytes: DefaultMaxEventBytes}
}

// Validate names the first setting that cannot work.
func (c OutboxConfig) Validate() error {
	if c.Take && c.MaxEventBytes < 1 {
		return fmt.Errorf("largest event of the outbox: %d bytes; want at least 1", c.MaxEventBytes)
	}
	return CheckIdentifyingAttribute(c.IdentifyBy)
}
