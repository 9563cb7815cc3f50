package intake

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/waybillhq/waybill/internal/governor"
	"github.com/waybillhq/waybill/schemas/chipingress"
)

// frameClient speaks HTTP/2 by hand.
type frameClient struct {
	*http2.Framer
	conn net.Conn

	mu     sync.Mutex // guards what follows
	opened map[uint32]int64
	status map[uint32]string // grpc-status of ended streams
	lost   bool
}

func mustFrameClient(t *testing.T, s *rpcSite) *frameClient {
	t.Helper()
	conn, err := net.Dial("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	c := &frameClient{Framer: http2.NewFramer(conn, conn), conn: conn, opened: map[uint32]int64{}, status: map[uint32]string{}}
	c.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	read := make(chan struct{})
	t.Cleanup(func() { conn.Close(); <-read })
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	if err := c.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	go func() { defer close(read); c.read() }()
	return c
}

func (c *frameClient) read() {
	for {
		frame, err := c.ReadFrame()
		c.mu.Lock()
		switch frame := frame.(type) {
		case *http2.WindowUpdateFrame:
			c.opened[frame.StreamID] += int64(frame.Increment)
		case *http2.MetaHeadersFrame:
			for _, field := range frame.Fields {
				if field.Name == "grpc-status" {
					c.status[frame.StreamID] = field.Value
				}
			}
		}
		c.lost = c.lost || err != nil
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// window returns by how much a stream was opened beyond its first window.
func (c *frameClient) window(stream uint32) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.opened[stream]
}

func (c *frameClient) statusOf(stream uint32) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status[stream]
}

func (c *frameClient) begin(t *testing.T, stream uint32, method string) {
	t.Helper()
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, field := range []hpack.HeaderField{
		{Name: ":method", Value: "POST"},
		{Name: ":scheme", Value: "http"},
		{Name: ":path", Value: method},
		{Name: ":authority", Value: "x"},
		{Name: "content-type", Value: "application/grpc"},
		{Name: "te", Value: "trailers"},
	} {
		if err := encoder.WriteField(field); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block.Bytes(), EndHeaders: true}); err != nil {
		t.Fatal(err)
	}
}

// send sends data in frames, padded if padding is not 0.
func (c *frameClient) send(t *testing.T, stream uint32, data []byte, padding int, end bool) {
	t.Helper()
	for {
		n := min(len(data), 8<<10)
		last := n == len(data)
		var err error
		if padding > 0 {
			err = c.WriteDataPadded(stream, end && last, data[:n], make([]byte, padding))
		} else {
			err = c.WriteData(stream, end && last, data[:n])
		}
		if err != nil {
			t.Fatal(err)
		}
		if data = data[n:]; last {
			return
		}
	}
}

// message is an event with size bytes of data, as it goes over the wire.
func message(t *testing.T, size int) []byte {
	t.Helper()
	ce := validEvent("large")
	ce.Data = &pb.CloudEvent_BinaryData{BinaryData: make([]byte, size)}
	encoded, err := proto.Marshal(ce)
	if err != nil {
		t.Fatal(err)
	}
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(encoded))), encoded...)
}

const publishMethod = chipingress.ChipIngress_Publish_FullMethodName

// checkNothingHeld waits until no call holds anything.
func checkNothingHeld(t *testing.T, s *rpcSite) {
	t.Helper()
	checkReleased(t, s.intake)
	eventually(t, "the windows are given back", func() bool { return s.service.governor.Windows() == 0 })
}

// TestBudgetBeforeMessage: a message's bytes are taken before more of it comes than the
// first window, and while they are not to be had, its client may send no more.
func TestBudgetBeforeMessage(t *testing.T) {
	s := mustRPCSite(t, nil)
	budget := s.intake.Budget()
	others, err := budget.await(t.Context(), budget.share)
	if err != nil {
		t.Fatal(err)
	}
	wire := message(t, 500_000)
	c := mustFrameClient(t, s)
	c.begin(t, 1, publishMethod)
	c.send(t, 1, wire[:governor.Window], 0, false)
	eventually(t, "the message waits", func() bool { return budget.Waiting() == 1 })
	// Others go on, and the connection of the one that waits too.
	if _, err := s.Publish(t.Context(), validEvent("small")); err != nil {
		t.Error(err)
	}
	c.begin(t, 3, publishMethod)
	c.send(t, 3, message(t, 100), 0, true)
	eventually(t, "a small call beside it is answered", func() bool { return c.statusOf(3) == "0" })
	if n := c.window(1); n != 0 {
		t.Fatalf("the window was opened by %d bytes that are not there", n)
	}
	others.release()
	eventually(t, "the window is opened", func() bool { return c.window(1) > 0 })
	if n, want := c.window(1), int64(len(wire)-governor.Window); n < want || n > want+1024 {
		t.Errorf("it was opened by %d; %d are to come", n, want)
	}
	if used := budget.Used(); used != arrivalBytes(int64(len(wire))) {
		t.Errorf("%d bytes are taken for a message of %d", used, len(wire))
	}
	c.send(t, 1, wire[governor.Window:], 0, true)
	eventually(t, "it is answered", func() bool { return c.statusOf(1) == "0" })
	checkNothingHeld(t, s)
}

// TestPaddedMessage: padding takes window too, and does not leave a message stuck.
func TestPaddedMessage(t *testing.T) {
	s := mustRPCSite(t, nil)
	wire := message(t, 300_000)
	c := mustFrameClient(t, s)
	c.begin(t, 1, publishMethod)
	left := int64(governor.Window)
	for len(wire) > 0 {
		const piece, padding = 1000, 255
		n := min(piece, len(wire))
		eventually(t, "there is window", func() bool { return left+c.window(1) >= int64(n)+padding+1 })
		c.send(t, 1, wire[:n], padding, n == len(wire))
		wire = wire[n:]
		left -= int64(n) + padding + 1
	}
	eventually(t, "it is answered", func() bool { return c.statusOf(1) == "0" })
	checkNothingHeld(t, s)
}

// TestResets: whenever a call is reset or its connection lost, what it held comes back.
func TestResets(t *testing.T) {
	wire := message(t, 200_000)
	for _, lost := range []bool{false, true} {
		for sent := -1; sent <= len(wire); sent = next(sent, len(wire)) {
			t.Run(fmt.Sprintf("lost %v after %d", lost, sent), func(t *testing.T) {
				s := mustRPCSite(t, nil)
				c := mustFrameClient(t, s)
				c.begin(t, 1, publishMethod)
				if sent >= 0 {
					c.send(t, 1, wire[:min(sent, governor.Window)], 0, false)
				}
				if sent > governor.Window {
					eventually(t, "the window is opened", func() bool { return c.window(1) > 0 })
					c.send(t, 1, wire[governor.Window:sent], 0, false)
				}
				if lost {
					c.conn.Close()
				} else if err := c.WriteRSTStream(1, http2.ErrCodeCancel); err != nil {
					t.Fatal(err)
				}
				checkNothingHeld(t, s)
				if s.recorder.count() != 0 {
					t.Error("half a call was submitted")
				}
			})
		}
	}
}

// next returns the next interesting number of bytes to stop after.
func next(sent, size int) int {
	for _, stop := range []int{0, 3, 5, 1000, governor.Window - 1, governor.Window, governor.Window + 1, size / 2, size} {
		if stop > sent {
			return stop
		}
	}
	return size + 1
}

// TestResetWhileWaiting: who leaves the line leaves nothing behind, and lets the next on.
func TestResetWhileWaiting(t *testing.T) {
	s := mustRPCSite(t, nil)
	budget := s.intake.Budget()
	taken := budget.Size() - 2*governor.Window
	budget.TryAcquire(taken)
	wire := message(t, 500_000)
	c := mustFrameClient(t, s)
	for _, stream := range []uint32{1, 3} {
		c.begin(t, stream, publishMethod)
		c.send(t, stream, wire[:governor.Window], 0, false)
		eventually(t, "it waits", func() bool { return budget.Waiting() == int(stream+1)/2 })
	}
	if err := c.WriteRSTStream(1, http2.ErrCodeCancel); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it waits no more", func() bool { return budget.Waiting() == 1 })
	budget.Release(taken)
	eventually(t, "the next goes on", func() bool { return c.window(3) > 0 })
	if c.window(1) != 0 {
		t.Error("the window of a stream that is over was opened")
	}
	c.send(t, 3, wire[governor.Window:], 0, true)
	eventually(t, "it is answered", func() bool { return c.statusOf(3) == "0" })
	checkNothingHeld(t, s)
}

// TestTooManyWaiting: beyond MaxWaiting a call is told to come again.
func TestTooManyWaiting(t *testing.T) {
	s := mustRPCSite(t, func(c *Config) { c.MaxWaiting = 2 })
	budget := s.intake.Budget()
	taken := budget.Size() - 2*governor.Window
	budget.TryAcquire(taken)
	c := mustFrameClient(t, s)
	wire := message(t, 500_000)
	for i, stream := range []uint32{1, 3} {
		c.begin(t, stream, publishMethod)
		c.send(t, stream, wire[:governor.Window], 0, false)
		eventually(t, "it waits", func() bool { return budget.Waiting() == i+1 })
	}
	ce := validEvent("large")
	ce.Data = &pb.CloudEvent_BinaryData{BinaryData: make([]byte, 500_000)}
	_, err := s.Publish(t.Context(), ce)
	if status.Code(err) != codes.ResourceExhausted || len(status.Convert(err).Details()) != 1 {
		t.Errorf("error %v", err)
	}
	c.conn.Close()
	budget.Release(taken)
	checkNothingHeld(t, s)
}

// TestTooManyCalls: calls that do not send their messages hold the first windows of others
// no longer than BodyTimeout.
func TestTooManyCalls(t *testing.T) {
	s := mustRPCSite(t, func(c *Config) { c.WindowBytes, c.BodyTimeout = 3*governor.Window, 2*shortTimeout })
	if _, err := s.Ping(t.Context(), &chipingress.EmptyRequest{}); err != nil { // the connection is there
		t.Fatal(err)
	}
	c := mustFrameClient(t, s)
	for _, stream := range []uint32{1, 3, 5} {
		c.begin(t, stream, publishMethod)
		c.send(t, stream, []byte{0, 0}, 0, false)
	}
	eventually(t, "they hold all windows", func() bool { return s.service.governor.Windows() == 3*governor.Window })
	_, err := s.Publish(t.Context(), validEvent("small"))
	if status.Code(err) != codes.ResourceExhausted || len(status.Convert(err).Details()) != 1 {
		t.Errorf("error %v", err)
	}
	if _, err := s.Ping(t.Context(), &chipingress.EmptyRequest{}); err != nil {
		t.Errorf("ping: %v", err)
	}
	eventually(t, "they time out", func() bool {
		return c.statusOf(1) == "4" && c.statusOf(3) == "4" && c.statusOf(5) == "4"
	})
	if _, err := s.Publish(t.Context(), validEvent("small")); err != nil {
		t.Error(err)
	}
	checkNothingHeld(t, s)
}

// TestSlowMessage: a message that has got its bytes must come.
func TestSlowMessage(t *testing.T) {
	s := mustRPCSite(t, func(c *Config) { c.BodyTimeout = 250 * time.Millisecond })
	c := mustFrameClient(t, s)
	c.begin(t, 1, publishMethod)
	c.send(t, 1, message(t, 100_000)[:governor.Window], 0, false)
	eventually(t, "the call ends", func() bool { return c.statusOf(1) == "4" })
	checkNothingHeld(t, s)
}

// TestWindowIsTheLimit: a client that does not wait loses its connection.
func TestWindowIsTheLimit(t *testing.T) {
	s := mustRPCSite(t, nil)
	budget := s.intake.Budget()
	taken := budget.Size() - 2*governor.Window
	budget.TryAcquire(taken)
	c := mustFrameClient(t, s)
	c.begin(t, 1, publishMethod)
	_ = c.WriteData(1, false, message(t, 500_000)[:governor.Window])
	_ = c.WriteData(1, false, []byte{1})
	eventually(t, "the connection is lost", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.lost })
	budget.Release(taken)
	checkNothingHeld(t, s)
}

// TestStreamOfAllSizes: the windows of a stream are given back as its events are read.
func TestStreamOfAllSizes(t *testing.T) {
	s := mustRPCSite(t, nil)
	stream, err := s.StreamEvents(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const events = 2000
	failed := make(chan error, 1)
	go func() {
		for i := range events {
			ce := validEvent(fmt.Sprint(i))
			size := []int{0, 10, 3000, 8000, governor.Window - 100, governor.Window, 40_000, 7}[i%8]
			if i == events/2 {
				size = 900_000
			}
			ce.Data = &pb.CloudEvent_BinaryData{BinaryData: make([]byte, size)}
			if err := stream.Send(&chipingress.StreamEventsRequest{Event: ce}); err != nil {
				failed <- err
				return
			}
		}
		failed <- stream.CloseSend()
	}()
	for i := range events {
		response, err := stream.Recv()
		if err != nil || response.Status != statusOK || response.EventId != fmt.Sprint(i) {
			t.Fatalf("answer %d: %v, %v", i, response, err)
		}
	}
	if err := <-failed; err != nil {
		t.Error(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	checkNothingHeld(t, s)
}

// TestStreamsDoNotPushOthersOut: while streams wait for the budget, which they have used as
// far as they may, others are served.
func TestStreamsDoNotPushOthersOut(t *testing.T) {
	s := mustRPCSite(t, func(c *Config) {
		c.MaxEventBytes, c.MaxRequestBytes = 20_000, 20_000
		c.BudgetBytes = 2 * 2 * (20_000 + messageSlack)
	})
	s.recorder.held = true
	stream, err := s.StreamEvents(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sent := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for ctx.Err() == nil {
			ce := validEvent("stream")
			ce.Data = &pb.CloudEvent_BinaryData{BinaryData: make([]byte, 10_000)}
			if err := stream.Send(&chipingress.StreamEventsRequest{Event: ce}); err != nil {
				break
			}
		}
		sent <- stream.CloseSend()
	}()
	eventually(t, "the stream waits", func() bool { return s.intake.Budget().Waiting() == 1 })
	answered := make(chan error, 1)
	go func() {
		_, err := s.Publish(t.Context(), validEvent("unary"))
		answered <- err
	}()
	// Which unit it is cannot be counted: the stream's last may be submitted only now.
	eventually(t, "the call is submitted", func() bool {
		select {
		case err := <-answered:
			t.Fatalf("answered before it was submitted: %v", err)
		default:
		}
		return s.recorder.unitOf("unary") >= 0
	})
	s.recorder.answer(s.recorder.unitOf("unary"), nil)
	if err := <-answered; err != nil {
		t.Error(err)
	}
	if n := s.intake.Budget().Waiting(); n != 1 {
		t.Errorf("%d wait", n)
	}
	cancel()
	s.recorder.release()
	for {
		if _, err := stream.Recv(); err != nil {
			break
		}
	}
	<-sent
	checkNothingHeld(t, s)
}

// TestBatchOfManyEmptyEvents: a batch is counted before it is decoded.
func TestBatchOfManyEmptyEvents(t *testing.T) {
	s := mustRPCSite(t, nil)
	wire := bytes.Repeat([]byte{10, 0}, 1<<20)
	c := mustFrameClient(t, s)
	c.begin(t, 1, chipingress.ChipIngress_PublishBatch_FullMethodName)
	data := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(wire))), wire...)
	c.send(t, 1, data[:governor.Window], 0, false)
	eventually(t, "the window is opened", func() bool { return c.window(1) > 0 })
	c.send(t, 1, data[governor.Window:], 0, true)
	eventually(t, "it is INVALID_ARGUMENT", func() bool { return c.statusOf(1) == "3" })
	checkNothingHeld(t, s)
}
