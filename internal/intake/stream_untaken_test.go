package intake

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/schemas/chipingress"
)

// An answer of these tests takes about 1 KB. What a client does not take fills its window of
// 64 KiB and the server's write quota of 64 KiB, which is about 130 answers; the rest of
// untakenEvents stays with the stream.
const (
	untakenEvents = 150
	untakenData   = 16 << 10
)

func untakenID(i int) string { return fmt.Sprintf("%04d", i) + strings.Repeat("i", 996) }

// sendUntaken sends all events. The channel gets the error of the first that could not be
// sent, or nil.
func sendUntaken(stream clientStream) <-chan error {
	sent := make(chan error, 1)
	go func() {
		for i := range untakenEvents {
			ce := validEvent(untakenID(i))
			ce.Data = &pb.CloudEvent_BinaryData{BinaryData: make([]byte, untakenData)}
			if err := stream.Send(&chipingress.StreamEventsRequest{Event: ce}); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	return sent
}

// mustStreamUntaken returns a stream on which all events are submitted and whose client takes
// no answer, because it does not ask for any. They are committed once the recorder is released:
// were some before, the call might end before the rest has come.
func mustStreamUntaken(t *testing.T, change func(*Config)) (*rpcSite, clientStream) {
	t.Helper()
	s := mustRPCSite(t, change, grpc.WithStaticStreamWindowSize(64<<10))
	s.recorder.held = true
	stream := mustStream(t, s)
	sent := sendUntaken(stream)
	s.recorder.waitUnits(t, untakenEvents)
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	return s, stream
}

// takeAnswers takes answers until the call ends, checks their order, and returns how many
// there were and how it ended.
func takeAnswers(t *testing.T, stream clientStream) (int, error) {
	t.Helper()
	for n := 0; ; n++ {
		answer, err := stream.Recv()
		if err != nil {
			return n, err
		}
		if answer.EventId != untakenID(n) || answer.Status != statusOK {
			t.Fatalf("answer %d is %.10q %q", n, answer.EventId, answer.Status)
		}
	}
}

// TestStreamUntaken: a client that takes no answers does not hold the budget with events
// that are committed, and gets all answers once it takes them.
func TestStreamUntaken(t *testing.T) {
	s, stream := mustStreamUntaken(t, nil)
	s.recorder.release()
	eventually(t, "only answers are held", func() bool { return s.intake.Budget().Used() < 3*untakenData })
	if s.intake.Budget().Used() == 0 {
		t.Error("the answers are not charged, or the client took them")
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if n, err := takeAnswers(t, stream); n != untakenEvents || !errors.Is(err, io.EOF) {
		t.Errorf("%d answers, then %v", n, err)
	}
	checkReleased(t, s.intake)
}

// TestStreamUntakenBound: an answer that was not taken counts as in flight.
func TestStreamUntakenBound(t *testing.T) {
	const limit = 8
	s := mustRPCSite(t, func(c *Config) { c.StreamInFlight = limit }, grpc.WithStaticStreamWindowSize(64<<10))
	stream := mustStream(t, s)
	sent := sendUntaken(stream)
	s.recorder.waitUnits(t, 128)
	<-time.After(100 * time.Millisecond) // no more may be submitted, which no signal tells
	if n := s.recorder.count(); n >= untakenEvents-limit {
		t.Errorf("%d events were submitted", n)
	}
	for i := range untakenEvents {
		expect(t, stream, untakenID(i)+" OK")
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

// TestStreamUntakenEnds: a call whose client takes no answers for BodyTimeout ends, and not
// with OK, though the client half-closed it before.
func TestStreamUntakenEnds(t *testing.T) {
	impatient := func(c *Config) { c.BodyTimeout = shortTimeout }
	t.Run("open", func(t *testing.T) {
		s, stream := mustStreamUntaken(t, impatient)
		s.recorder.release()
		checkEnds(t, s, stream)
	})
	t.Run("half-closed", func(t *testing.T) {
		s, stream := mustStreamUntaken(t, impatient)
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		s.recorder.release()
		checkEnds(t, s, stream)
	})
	t.Run("paused", func(t *testing.T) {
		s := mustRPCSite(t, func(c *Config) { impatient(c); c.StreamInFlight = 8 }, grpc.WithStaticStreamWindowSize(64<<10))
		stream := mustStream(t, s)
		sent := sendUntaken(stream)
		s.recorder.waitUnits(t, 1)
		checkEnds(t, s, stream)
		if err := <-sent; err == nil {
			t.Error("all events were sent")
		}
	})
}

// checkEnds fails unless the call ends, though its client has taken no answers, holds
// nothing then and tells the client.
func checkEnds(t *testing.T, s *rpcSite, stream clientStream) {
	t.Helper()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.service.Wait()
	}()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("the call does not end")
	}
	checkReleased(t, s.intake)
	n, err := takeAnswers(t, stream)
	if status.Code(err) != codes.DeadlineExceeded || n == 0 || n == untakenEvents {
		t.Errorf("%d answers, then %v", n, err)
	}
}

// TestStreamIdle: a call on which nothing happens for longer than BodyTimeout goes on.
func TestStreamIdle(t *testing.T) {
	s := mustRPCSite(t, func(c *Config) { c.BodyTimeout = shortTimeout })
	s.recorder.held = true
	stream := mustStream(t, s)
	for i, id := range []string{"a", "b"} {
		mustSend(t, stream, id)
		s.recorder.waitUnits(t, i+1)
		<-time.After(shortTimeout * 3 / 2) // the engine may take longer than that too
		s.recorder.answer(i, nil)
		expect(t, stream, id+" OK")
		<-time.After(shortTimeout * 3 / 2)
	}
}

// TestStreamLongFault: what is wrong with an event is told in few bytes, however long its
// names are, for it is kept until the client takes it.
func TestStreamLongFault(t *testing.T) {
	s := mustRPCSite(t, nil)
	stream := mustStream(t, s)
	long := string(bytes.Repeat([]byte("ä"), 1<<19))
	named := validEvent("named")
	named.Attributes = map[string]*pb.CloudEventAttributeValue{long: stringValue("x")}
	version := validEvent("version")
	version.SpecVersion = long
	for _, ce := range []*pb.CloudEvent{validEvent(long), named, version} {
		if err := stream.Send(&chipingress.StreamEventsRequest{Event: ce}); err != nil {
			t.Fatal(err)
		}
		answer, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if len(answer.EventId) > pipeline.MaxIDBytes+3 || len(answer.Status) > maxStatusBytes ||
			!strings.HasPrefix(answer.Status, "INVALID_ARGUMENT: ") {
			t.Errorf("an id of %d bytes, status %.100q of %d", len(answer.EventId), answer.Status, len(answer.Status))
		}
	}
	checkReleased(t, s.intake)
}
