package governor

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"testing"

	"golang.org/x/net/http2"
)

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// pieces is a connection that brings what it has in pieces of random size, and keeps what is
// written to it.
type pieces struct {
	net.Conn
	random  *rand.Rand
	in      []byte
	written bytes.Buffer
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.in) == 0 {
		return 0, io.EOF
	}
	n := min(1+p.random.IntN(40), len(b), len(p.in))
	copy(b, p.in[:n])
	p.in = p.in[n:]
	return n, nil
}

func (p *pieces) Write(b []byte) (int, error) { return p.written.Write(b) }

// script is what clients of some streams send, and what a reader who sees the whole finds.
type script struct {
	wire   []byte
	sent   map[uint32]*sent
	random *rand.Rand
}

// sent is what was sent of one stream.
type sent struct {
	data        []byte // without padding
	padding     int
	left        []byte // of a message that is partly sent
	ended, gone bool
}

// newScript draws frames of a few streams, interleaved: messages of all sizes, split and
// padded at random, with resets and ends.
func newScript(random *rand.Rand) *script {
	s := &script{sent: map[uint32]*sent{}, random: random}
	var wire bytes.Buffer
	wire.WriteString(preface)
	f := http2.NewFramer(&wire, nil)
	f.AllowIllegalWrites = true
	must(f.WriteSettings())
	next := uint32(1)
	for range 5 + random.IntN(60) {
		if len(s.sent) == 0 || random.IntN(5) == 0 {
			must(f.WriteHeaders(http2.HeadersFrameParam{StreamID: next, BlockFragment: []byte("headers"), EndHeaders: true}))
			s.sent[next] = &sent{}
			next += 2
			continue
		}
		stream := 1 + 2*uint32(random.IntN(len(s.sent)))
		if st := s.sent[stream]; !st.ended && !st.gone {
			s.step(f, stream, st)
		}
	}
	s.wire = wire.Bytes()
	return s
}

func (s *script) step(f *http2.Framer, stream uint32, st *sent) {
	switch s.random.IntN(12) {
	case 0:
		must(f.WriteRSTStream(stream, http2.ErrCodeCancel))
		st.gone = true
		return
	case 1:
		must(f.WritePing(false, [8]byte{1}))
		return
	case 2:
		must(f.WriteWindowUpdate(stream, 10))
		return
	}
	for len(st.left) == 0 || s.random.IntN(3) == 0 {
		size := s.random.IntN(200)
		if s.random.IntN(10) == 0 {
			size = 0
		}
		message := make([]byte, prefixBytes+size)
		binary.BigEndian.PutUint32(message[1:], uint32(size))
		st.left = append(st.left, message...)
	}
	n := s.random.IntN(len(st.left) + 1)
	data := st.left[:n]
	st.left = st.left[n:]
	end := s.random.IntN(10) == 0
	if s.random.IntN(3) == 0 {
		padding := s.random.IntN(20)
		must(f.WriteDataPadded(stream, end, data, make([]byte, padding)))
		if padding > 0 {
			st.padding += padding + 1
		} else {
			st.padding++ // the length alone
		}
	} else {
		must(f.WriteData(stream, end, data))
	}
	st.data = append(st.data, data...)
	st.ended = end
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// readLikeGRPC reads frame by frame, header and payload, and begins a call with each HEADERS
// frame. It returns the calls by stream, gone ones too.
func readLikeGRPC(c *Conn) (map[uint32]*Call, error) {
	calls := map[uint32]*Call{}
	if _, err := io.ReadFull(c, make([]byte, len(preface))); err != nil {
		return nil, err
	}
	for {
		var header [frameHeaderBytes]byte
		if _, err := io.ReadFull(c, header[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return calls, nil
			}
			return calls, err
		}
		length := int(header[0])<<16 | int(header[1])<<8 | int(header[2])
		if _, err := io.ReadFull(c, make([]byte, length)); err != nil {
			return calls, err
		}
		if header[3] == frameHeaders {
			call := c.begin()
			call.window = 1 << 30 // windows have tests of their own
			calls[call.stream] = call
		}
	}
}

// check compares a call with what a reader of the whole finds.
func (st *sent) check(call *Call) error {
	var sizes []int64
	rest := st.data
	for len(rest) >= prefixBytes {
		size := prefixBytes + int64(binary.BigEndian.Uint32(rest[1:]))
		sizes = append(sizes, size)
		if size > int64(len(rest)) {
			break
		}
		rest = rest[size:]
	}
	partial := len(rest) >= prefixBytes
	switch {
	case call == nil:
		return errors.New("there is no call")
	case !slices.Equal(call.sizes, sizes):
		return fmt.Errorf("messages of %v; want %v", call.sizes, sizes)
	case call.partial != partial:
		return fmt.Errorf("partial is %v; want %v", call.partial, partial)
	case partial && call.left != sizes[len(sizes)-1]-int64(len(rest)):
		return fmt.Errorf("%d bytes left; want %d", call.left, sizes[len(sizes)-1]-int64(len(rest)))
	case call.ended != st.ended || call.gone != st.gone:
		return fmt.Errorf("ended %v and gone %v; want %v and %v", call.ended, call.gone, st.ended, st.gone)
	case 1<<30-call.window != int64(len(st.data)+st.padding):
		return fmt.Errorf("%d bytes of window used; want %d", 1<<30-call.window, len(st.data)+st.padding)
	case call.pending != int64(st.padding):
		return fmt.Errorf("%d bytes to give back; want the padding, %d", call.pending, st.padding)
	}
	return nil
}

// FuzzFollow: whatever the frames are and however they are cut into pieces, the governor
// finds in them what a reader of the whole finds.
func FuzzFollow(f *testing.F) {
	for seed := range uint64(200) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		random := rand.New(rand.NewPCG(seed, 1))
		s := newScript(random)
		g := New(1 << 30)
		c := newConn(g, &pieces{random: random, in: s.wire})
		calls, err := readLikeGRPC(c)
		if err != nil {
			t.Fatal(err)
		}
		for stream, st := range s.sent {
			if err := st.check(calls[stream]); err != nil {
				t.Errorf("stream %d: %v", stream, err)
			}
		}
	})
}

// FuzzNoise: bytes that are no frames neither stop nor end the program.
func FuzzNoise(f *testing.F) {
	f.Add([]byte("\x00\x00\x05\x01\x00\x00\x00\x00\x01xxxxx\x00\x00\x03\x00\x08\x00\x00\x00\x01\xff\x00\x00"))
	f.Add([]byte("\x00\x00\x00\x00\x08\x00\x00\x00\x01"))
	f.Fuzz(func(t *testing.T, wire []byte) {
		c := newConn(New(1<<30), &pieces{random: rand.New(rand.NewPCG(1, 1)), in: append([]byte(preface), wire...)})
		_, _ = readLikeGRPC(c) // whatever it is
	})
}

// FuzzPass: what grpc-go writes, in whatever pieces, reaches the client in order, but for
// the updates of streams' windows, and with the governor's at frame boundaries.
func FuzzPass(f *testing.F) {
	for seed := range uint64(200) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		random := rand.New(rand.NewPCG(seed, 2))
		var server bytes.Buffer
		framer := http2.NewFramer(&server, nil)
		must(framer.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 16384}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 25}))
		must(framer.WriteWindowUpdate(0, 77))
		settings := server.Len()
		var want []string
		for range random.IntN(40) {
			want = append(want, writeServerFrame(framer, random)...)
		}
		raw := &pieces{random: random}
		c := newConn(New(1<<30), raw)
		updates := 0
		for from, wire := 0, server.Bytes(); from < len(wire); {
			n := min(1+random.IntN(30), len(wire)-from)
			if from == 0 {
				n = max(n, settings) // which grpc-go writes at once
			}
			if written, err := c.Write(wire[from : from+n]); err != nil || written != n {
				t.Fatal(written, err)
			}
			from += n
			if random.IntN(3) == 0 {
				c.open(9, 1000)
				updates++
			}
		}
		c.open(9, 1000)
		checkPassed(t, raw.written.Bytes(), want, updates+1)
	})
}

// writeServerFrame writes a frame as a server does and returns how a client sees it: not at
// all if it opens a stream's window.
func writeServerFrame(f *http2.Framer, random *rand.Rand) []string {
	stream := 1 + 2*uint32(random.IntN(3))
	switch random.IntN(5) {
	case 0:
		must(f.WriteWindowUpdate(stream, 1+uint32(random.IntN(1000))))
		return nil
	case 1:
		must(f.WriteWindowUpdate(0, 5))
		return []string{"WINDOW_UPDATE 0"}
	case 2:
		data := make([]byte, random.IntN(50))
		must(f.WriteData(stream, false, data))
		return []string{fmt.Sprintf("DATA %d", stream)}
	case 3:
		must(f.WritePing(true, [8]byte{8}))
		return []string{"PING 0"}
	}
	must(f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: []byte("x"), EndHeaders: true, EndStream: true}))
	return []string{fmt.Sprintf("HEADERS %d", stream)}
}

func checkPassed(t *testing.T, wire []byte, want []string, updates int) {
	t.Helper()
	reader := http2.NewFramer(nil, bytes.NewReader(wire))
	var got []string
	for {
		frame, err := reader.ReadFrame()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("after %v: %v", got, err)
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if window, _ := frame.Value(http2.SettingInitialWindowSize); window != Window {
				t.Errorf("the client is told a window of %d", window)
			}
			continue
		case *http2.WindowUpdateFrame:
			if frame.StreamID == 9 && frame.Increment == 1000 {
				updates--
				continue
			}
			if frame.Increment == 77 {
				continue
			}
		}
		got = append(got, fmt.Sprintf("%v %d", frame.Header().Type, frame.Header().StreamID))
	}
	if !slices.Equal(got, want) {
		t.Errorf("passed on %v; want %v", got, want)
	}
	if updates != 0 {
		t.Errorf("%d updates are missing", updates)
	}
}

// TestFirstWindowIsKept: a server whose first frame does not tell a window is not governed,
// and says so.
func TestFirstWindowIsKept(t *testing.T) {
	for _, first := range []string{"\x00\x00\x00\x04\x00\x00\x00\x00\x00", "\x00\x00\x08\x06\x00\x00\x00\x00\x00pingpong"} {
		c := newConn(New(1<<30), &pieces{})
		if _, err := c.Write([]byte(first)); err == nil {
			t.Errorf("%q passed", first)
		}
	}
}

// TestWindowIsEnforced: a client that sends more than it may loses its connection.
func TestWindowIsEnforced(t *testing.T) {
	for _, size := range []int{Window, Window + 1} {
		var wire bytes.Buffer
		wire.WriteString(preface)
		f := http2.NewFramer(&wire, nil)
		must(f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte("x"), EndHeaders: true}))
		must(f.WriteData(1, false, make([]byte, size)))
		c := newConn(New(1<<30), &pieces{random: rand.New(rand.NewPCG(1, 1)), in: wire.Bytes()})
		header := make([]byte, len(preface)+frameHeaderBytes+1)
		if _, err := io.ReadFull(c, header); err != nil {
			t.Fatal(err)
		}
		c.begin()
		_, err := io.Copy(io.Discard, c)
		if (err != nil) != (size > Window) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// TestLaterConnectionsAreNarrow: where there are many connections, the later ones may send less
// of a call unasked, are told so and held to it, until there are fewer.
func TestLaterConnectionsAreNarrow(t *testing.T) {
	g := New(1 << 30)
	var conns []*Conn
	for range wideConnections {
		conns = append(conns, newConn(g, &pieces{}))
	}
	late := newConn(g, closable{&pieces{}})
	if window := toldWindow(t, late); window != NarrowWindow {
		t.Errorf("a connection beyond %d is told a window of %d, want %d", wideConnections, window, NarrowWindow)
	}
	if call := late.begin(); call.window != NarrowWindow {
		t.Errorf("its calls have a window of %d", call.window)
	}
	must(late.Close())
	if again := newConn(g, &pieces{}); again.window != NarrowWindow {
		t.Errorf("a narrow connection's end made room for one with a window of %d", again.window)
	}
	conns[0].Conn = closable{conns[0].Conn}
	must(conns[0].Close())
	must(conns[0].Close()) // counts once
	for i, want := range []int64{Window, NarrowWindow} {
		if next := newConn(g, &pieces{}); next.window != want {
			t.Errorf("connection %d after one has ended has a window of %d, want %d", i, next.window, want)
		}
	}
}

// TestFailedConnectionMakesRoom: grpc-go does not close a connection whose first frames it
// cannot write.
func TestFailedConnectionMakesRoom(t *testing.T) {
	g := New(1 << 30)
	client, server := net.Pipe()
	must(client.Close())
	if _, err := newConn(g, server).Write(settingsFrame()); err == nil {
		t.Fatal("written to a client that is gone")
	}
	if n := g.wide.Load(); n != 0 {
		t.Errorf("%d connections count still", n)
	}
}

// closable is a connection that can be closed.
type closable struct{ net.Conn }

func (closable) Close() error { return nil }

// settingsFrame is the first frame of a server.
func settingsFrame() []byte {
	var wire bytes.Buffer
	must(http2.NewFramer(&wire, nil).WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20}))
	return wire.Bytes()
}

// toldWindow is the first window that a client of the connection is told.
func toldWindow(t *testing.T, c *Conn) int64 {
	t.Helper()
	if _, err := c.Write(settingsFrame()); err != nil {
		t.Fatal(err)
	}
	frame, err := http2.NewFramer(nil, &c.Conn.(closable).Conn.(*pieces).written).ReadFrame()
	if err != nil {
		t.Fatal(err)
	}
	window, _ := frame.(*http2.SettingsFrame).Value(http2.SettingInitialWindowSize)
	return int64(window)
}
