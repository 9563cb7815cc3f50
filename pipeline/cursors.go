package pipeline

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/waybillhq/waybill/pipeline/failpoint"
)

// cursorTimeout bounds one look at a cursor: a hint is not worth a longer wait.
const cursorTimeout = 2 * time.Second

// Cursors keeps, per lane, how far a sink's log in another system was written: a hint that
// saves a takeover the search for the log's end. The log itself decides, so a lost, an old
// or an unreadable hint all mean the same, a longer search, and the caller goes on after
// any error. It is safe for concurrent use.
type Cursors struct {
	js   jetstream.JetStream
	sink string
}

// NewCursors returns the cursors of a sink.
func NewCursors(q *Queue, sink string) *Cursors { return &Cursors{js: q.js, sink: sink} }

func (c *Cursors) key(lane int) string { return fmt.Sprintf("%s.%02d", c.sink, lane) }

// Load returns the offset last stored for a lane, or false when there is none.
func (c *Cursors) Load(ctx context.Context, lane int) (offset int64, ok bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, cursorTimeout)
	defer cancel()
	kv, err := c.js.KeyValue(ctx, cursorsBucket)
	if err != nil {
		return 0, false, fmt.Errorf("read cursor %s: %w", c.key(lane), err)
	}
	entry, err := kv.Get(ctx, c.key(lane))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("read cursor %s: %w", c.key(lane), err)
	}
	offset, err = strconv.ParseInt(string(entry.Value()), 10, 64)
	if err != nil || offset < 0 {
		return 0, false, fmt.Errorf("cursor %s: %q is not an offset", c.key(lane), entry.Value())
	}
	return offset, true, nil
}

// Store keeps the offset for a lane.
func (c *Cursors) Store(ctx context.Context, lane int, offset int64) error {
	ctx, cancel := context.WithTimeout(ctx, cursorTimeout)
	defer cancel()
	kv, err := c.js.KeyValue(ctx, cursorsBucket)
	if err == nil {
		failpoint.Hit("forwarder/before-cursor")
		_, err = kv.Put(ctx, c.key(lane), strconv.AppendInt(nil, offset, 10))
		err = failpoint.Err("forwarder/after-cursor", err)
	}
	if err != nil {
		return fmt.Errorf("store cursor %s: %w", c.key(lane), err)
	}
	return nil
}
