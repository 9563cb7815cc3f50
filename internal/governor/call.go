package governor

import (
	"context"
	"encoding/binary"
	"errors"
	"time"
)

// prefixBytes announce a message: a flag, and its length in four bytes.
const prefixBytes = 5

// slack is what a client may send beyond the message that was allowed: its last frame may be
// padded, by 256 bytes at most.
const slack = 512

// Call is one stream of a connection, from its headers to the end of its handler. Its
// methods are for the handler, one at a time, but for End, which may be called again.
type Call struct {
	conn   *Conn
	stream uint32

	// What follows is guarded by conn.mu.

	window  int64 // what the client may still send
	pending int64 // what was taken and not yet given back to the client's window

	prefix  [prefixBytes]byte
	got     int     // bytes of prefix
	left    int64   // of the message that has begun, without its prefix
	sizes   []int64 // of the messages that have begun and are not taken, with their prefixes
	partial bool    // the last of sizes is not complete
	advance int64   // what was allowed of the message that has begun beyond the first window

	ended    bool // the client sends no more
	gone     bool // the stream is over
	handled  bool // a handler runs
	returned bool // the first window was given back

	wake chan struct{} // closed when something changed; nil when nobody waits
}

// Handle says that a handler has begun, which will call End. It reports false when the
// stream is over already.
func (c *Call) Handle() bool {
	c.conn.mu.Lock()
	defer c.conn.mu.Unlock()
	c.handled = true
	return !c.gone
}

// End says that the handler has ended: what it held of the messages is garbage.
func (c *Call) End() {
	c.conn.mu.Lock()
	defer c.conn.mu.Unlock()
	c.giveWindowBack()
}

// ReturnWindow gives the first window back before the call ends: the handler has taken the
// only message, and its bytes count elsewhere.
func (c *Call) ReturnWindow() { c.End() }

// giveWindowBack gives the first window back, once. The caller holds conn.mu.
func (c *Call) giveWindowBack() {
	if !c.returned {
		c.returned = true
		c.conn.governor.windows.Add(-c.conn.window)
	}
}

// ErrSlow means that what was waited for did not come in time.
var ErrSlow = errors.New("the message did not arrive in time")

// Begun waits for the next message and returns its size with its prefix when it is larger
// than the first window: then its rest does not come before Allow. It returns 0 when the
// message is complete, or when none comes any more. Alone says that the call has but one
// message, which then is complete with the client's last word. The error is ErrSlow after
// timeout, unless that is 0, or that of ctx.
func (c *Call) Begun(ctx context.Context, alone bool, timeout time.Duration) (size int64, err error) {
	err = c.await(ctx, timeout, func() bool {
		size = 0
		if c.over() {
			return true
		}
		if len(c.sizes) > 0 && c.sizes[0] > c.conn.window {
			size = c.sizes[0]
			return true
		}
		return !alone && c.complete()
	})
	return size, err
}

// Allow lets the client send the rest of the message that has begun.
func (c *Call) Allow() {
	c.conn.mu.Lock()
	if more := c.left + slack - c.window; c.partial && more > 0 {
		c.advance += more
		c.pending += more
	}
	n := c.takePending()
	c.conn.mu.Unlock()
	c.conn.open(c.stream, n)
}

// Complete waits until the message that has begun is there, or until none comes any more.
// The error is as of Begun.
func (c *Call) Complete(ctx context.Context, timeout time.Duration) error {
	return c.await(ctx, timeout, func() bool { return c.over() || c.complete() })
}

// Taken says that the first message that was there has been read by the handler.
func (c *Call) Taken() {
	c.conn.mu.Lock()
	var n int64
	if len(c.sizes) > 0 && (len(c.sizes) > 1 || !c.partial) {
		c.pending += c.sizes[0] - c.advance // what was allowed beyond the window does not open it
		c.advance = 0
		c.sizes = c.sizes[1:]
		if c.pending >= c.conn.window/2 || c.starved() {
			n = c.takePending()
		}
	}
	c.conn.mu.Unlock()
	c.conn.open(c.stream, n)
}

// await returns when there, which is called with conn.mu held, says so.
func (c *Call) await(ctx context.Context, timeout time.Duration, there func() bool) error {
	var late <-chan time.Time
	for {
		c.conn.mu.Lock()
		if there() {
			c.conn.mu.Unlock()
			return nil
		}
		if late == nil && timeout > 0 {
			timer := time.NewTimer(timeout)
			defer timer.Stop()
			late = timer.C
		}
		if err := c.wait(ctx, late); err != nil {
			return err
		}
	}
}

// wait releases conn.mu, which the caller holds, and returns after a change. What the
// client needs of what was taken is given back first.
func (c *Call) wait(ctx context.Context, late <-chan time.Time) error {
	var n int64
	if c.starved() {
		n = c.takePending()
	}
	wake := make(chan struct{})
	c.wake = wake
	c.conn.mu.Unlock()
	c.conn.open(c.stream, n)
	select {
	case <-wake:
		return nil
	case <-late:
		return ErrSlow
	case <-ctx.Done():
		return ctx.Err()
	}
}

// The following are called with conn.mu held.

func (c *Call) over() bool     { return c.gone || c.ended }
func (c *Call) complete() bool { return len(c.sizes) > 1 || len(c.sizes) == 1 && !c.partial }

// starved reports that the client may not send the whole of what it has begun, and could if
// it was given back what was taken.
func (c *Call) starved() bool { return c.partial && c.pending > 0 && c.left+slack > c.window }

func (c *Call) takePending() int64 {
	n := c.pending
	c.window += n
	c.pending = 0
	return n
}

// arrived follows the messages through data that came in.
func (c *Call) arrived(data []byte) {
	c.window -= int64(len(data))
	for len(data) > 0 {
		if !c.partial {
			n := copy(c.prefix[c.got:], data)
			data = data[n:]
			if c.got += n; c.got == prefixBytes {
				c.begin()
			}
			continue
		}
		n := min(int64(len(data)), c.left)
		data = data[n:]
		if c.left -= n; c.left == 0 {
			c.partial, c.got = false, 0
		}
	}
}

func (c *Call) begin() {
	c.left = int64(binary.BigEndian.Uint32(c.prefix[1:]))
	c.sizes = append(c.sizes, prefixBytes+c.left)
	c.partial = c.left > 0
	if !c.partial {
		c.got = 0
	}
}

// padded takes note of bytes that are no data. They are given back with what is taken.
func (c *Call) padded(n int) {
	c.window -= int64(n)
	c.pending += int64(n)
}

// changed wakes who waits, if there is something to see.
func (c *Call) changed() {
	if c.wake == nil {
		return
	}
	large := len(c.sizes) == 1 && c.partial && c.sizes[0] > c.conn.window && c.advance == 0
	if c.over() || c.complete() || large || c.starved() {
		close(c.wake)
		c.wake = nil
	}
}
