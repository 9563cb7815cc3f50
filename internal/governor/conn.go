package governor

import (
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"sync"
)

// Conn is a governed connection of a server. One goroutine reads and one writes, as
// grpc-go's do; handlers open windows meanwhile.
type Conn struct {
	net.Conn
	governor *Governor
	window   int64 // first one of each call
	left     sync.Once

	reader reader
	in     inbound // of the goroutine that reads

	mu    sync.Mutex // guards calls and what is in them
	calls map[uint32]*Call

	writing sync.Mutex // guards what follows, and is held while the connection is written to
	out     outbound
}

// inbound is how far the frames of the client have been followed.
type inbound struct {
	preface int // bytes of it that have come
	header  frameHeader
	left    int    // bytes of the frame's payload to come
	data    int    // of those, bytes of data
	padding bool   // the next byte says how much padding there is
	call    *Call  // of a DATA frame, if it is known
	stream  uint32 // of the newest HEADERS frame
	ended   bool   // that frame was the client's last of the stream
}

func newConn(g *Governor, conn net.Conn) *Conn {
	window := g.widen()
	return &Conn{Conn: conn, governor: g, window: window, out: outbound{window: uint32(window)}, reader: newReader(conn), calls: map[uint32]*Call{}}
}

// begin makes the call whose headers were read last.
func (c *Conn) begin() *Call {
	call := &Call{conn: c, stream: c.in.stream, window: c.window, ended: c.in.ended}
	c.mu.Lock()
	c.calls[call.stream] = call
	c.mu.Unlock()
	return call
}

// finish ends a stream: nothing more of it comes in.
func (c *Conn) finish(stream uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if call := c.calls[stream]; call != nil {
		c.forget(call)
	}
}

// forget ends a call. The caller holds c.mu.
func (c *Conn) forget(call *Call) {
	delete(c.calls, call.stream)
	call.gone = true
	if !call.handled {
		call.giveWindowBack()
	}
	call.changed()
}

// leave makes room for another wide connection.
func (c *Conn) leave() {
	c.left.Do(func() {
		if c.window == Window {
			c.governor.wide.Add(-1)
		}
	})
}

// Close implements net.Conn.
func (c *Conn) Close() error {
	c.leave()
	c.mu.Lock()
	for _, call := range c.calls {
		c.forget(call)
	}
	c.mu.Unlock()
	return c.Conn.Close()
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.reader.Read(p)
	if !c.follow(p[:n]) {
		return 0, errWindow
	}
	return n, err
}

// errWindow ends the connection of a client that does not keep to its windows: what it
// sends would be received although there is no room for it.
var errWindow = errors.New("governor: the client sent more than a stream's window allows")

// follow takes note of what the client sent, and reports whether it may have.
func (c *Conn) follow(b []byte) bool {
	in := &c.in
	if in.preface < prefaceBytes {
		n := min(len(b), prefaceBytes-in.preface)
		in.preface += n
		b = b[n:]
	}
	for len(b) > 0 {
		if !in.header.complete() {
			b = b[in.header.fill(b):]
			if in.header.complete() {
				c.beginFrame()
			}
			continue
		}
		n := min(len(b), in.left)
		if in.call != nil && !c.payload(b[:n]) {
			return false
		}
		b = b[n:]
		if in.left -= n; in.left == 0 {
			c.endFrame()
		}
	}
	return true
}

func (c *Conn) beginFrame() {
	in := &c.in
	in.left = in.header.length()
	switch in.header.kind() {
	case frameHeaders:
		in.stream, in.ended = in.header.stream(), in.header.has(flagEndStream)
	case frameReset:
		c.finish(in.header.stream())
	case frameData:
		c.mu.Lock()
		in.call = c.calls[in.header.stream()]
		c.mu.Unlock()
		in.data, in.padding = in.left, in.header.has(flagPadded)
	}
	if in.left == 0 {
		c.endFrame()
	}
}

// payload follows a piece of a DATA frame's, and reports whether the window allowed it.
func (c *Conn) payload(b []byte) bool {
	in := &c.in
	c.mu.Lock()
	defer c.mu.Unlock()
	if in.padding && len(b) > 0 {
		in.padding = false
		in.data = max(in.data-1-int(b[0]), 0)
		in.call.padded(1)
		b = b[1:]
	}
	n := min(len(b), in.data)
	in.call.arrived(b[:n])
	in.data -= n
	in.call.padded(len(b) - n)
	return in.call.window >= 0
}

func (c *Conn) endFrame() {
	in := &c.in
	in.header.got = 0
	if in.call == nil {
		return
	}
	c.mu.Lock()
	if in.header.has(flagEndStream) {
		in.call.ended = true
	}
	in.call.changed()
	c.mu.Unlock()
	in.call = nil
}

// outbound is how far the frames of grpc-go have been followed.
type outbound struct {
	window   uint32      // that the client is told of
	header   frameHeader // in pieces, it is held back until it is complete
	left     int         // bytes of the frame's payload to come
	drop     bool        // the frame is not passed on
	settings bool        // the first SETTINGS frame has passed
	updates  []byte      // frames to be written between two of grpc-go's
	buf      []byte
	ended    []uint32 // streams that ended in what is being written
}

// errSettings means that grpc-go no longer does what this package was made for.
var errSettings = errors.New("governor: the server's first frame is not a SETTINGS frame with a first window")

// keptBytes is what a connection keeps to write from, more than most answers take.
const keptBytes = 2 << 10

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	from := p
	if !c.out.settings {
		from = slices.Clone(p) // it is changed
	}
	if err := c.out.pass(from); err != nil {
		return 0, err
	}
	_, err := c.Conn.Write(c.out.buf)
	if cap(c.out.buf) > keptBytes {
		c.out.buf = nil
	}
	for _, stream := range c.out.ended {
		c.finish(stream)
	}
	if err != nil {
		c.leave() // grpc-go does not close a connection that takes none of its first frames
		return 0, err
	}
	return len(p), nil
}

// open writes a window update, or leaves it to the next Write when a frame is half
// written. It may wait for the client to read.
func (c *Conn) open(stream uint32, n int64) {
	if n <= 0 {
		return
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	c.out.updates = appendWindowUpdate(c.out.updates, stream, int(n))
	if !c.out.between() {
		return
	}
	_, _ = c.Conn.Write(c.out.updates) // who reads the connection learns that it is lost
	c.out.updates = c.out.updates[:0]
}

// between reports that what was written ends with a whole frame.
func (o *outbound) between() bool { return o.settings && o.header.got == 0 }

// pass makes buf what is to be written for p: it leaves out updates of streams' windows,
// puts in the governor's, and changes the first window that SETTINGS tell.
func (o *outbound) pass(p []byte) error {
	o.buf, o.ended = o.buf[:0], o.ended[:0]
	for len(p) > 0 {
		if !o.header.complete() {
			if o.header.got == 0 && o.settings {
				o.buf = append(o.buf, o.updates...)
				o.updates = o.updates[:0]
			}
			p = p[o.header.fill(p):]
			if !o.header.complete() {
				break
			}
			if err := o.begin(p); err != nil {
				return err
			}
		}
		n := min(len(p), o.left)
		if !o.drop {
			o.buf = append(o.buf, p[:n]...)
		}
		p = p[n:]
		if o.left -= n; o.left == 0 {
			o.header.got = 0
		}
	}
	if o.header.got == 0 && o.settings {
		o.buf = append(o.buf, o.updates...)
		o.updates = o.updates[:0]
	}
	return nil
}

// begin decides about a frame whose payload begins with p.
func (o *outbound) begin(p []byte) error {
	h := &o.header
	o.left = h.length()
	o.drop = h.kind() == frameWindowUpdate && h.stream() != 0
	if !o.settings {
		if err := tellWindow(h, p, o.window); err != nil {
			return err
		}
		o.settings = true
	}
	if h.kind() == frameReset || (h.kind() == frameHeaders || h.kind() == frameData) && h.has(flagEndStream) {
		o.ended = append(o.ended, h.stream())
	}
	if !o.drop {
		o.buf = append(o.buf, h.raw[:]...)
	}
	return nil
}

// tellWindow changes the first window in the payload of a SETTINGS frame.
func tellWindow(h *frameHeader, payload []byte, window uint32) error {
	if h.kind() != frameSettings || len(payload) < h.length() {
		return errSettings
	}
	for at := 0; at+settingBytes <= h.length(); at += settingBytes {
		if binary.BigEndian.Uint16(payload[at:]) == settingInitialWindow {
			binary.BigEndian.PutUint32(payload[at+2:], window)
			return nil
		}
	}
	return errSettings
}
