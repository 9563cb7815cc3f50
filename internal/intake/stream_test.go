package intake

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/schemas/chipingress"
)

type clientStream = chipingress.ChipIngress_StreamEventsClient

func mustStream(t *testing.T, s *rpcSite) clientStream {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	stream, err := s.StreamEvents(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func mustSend(t *testing.T, stream clientStream, ids ...string) {
	t.Helper()
	for _, id := range ids {
		if err := stream.Send(&chipingress.StreamEventsRequest{Event: validEvent(id)}); err != nil {
			t.Fatal(err)
		}
	}
}

// expect receives one answer per id, in order, each with a status that begins as said.
func expect(t *testing.T, stream clientStream, want ...string) {
	t.Helper()
	for _, line := range want {
		id, begins, _ := strings.Cut(line, " ")
		answer, err := stream.Recv()
		if err != nil {
			t.Fatalf("instead of the answer to %s: %v", id, err)
		}
		if answer.EventId != id || !strings.HasPrefix(answer.Status, begins) {
			t.Errorf("answer %q %q, want %q", answer.EventId, answer.Status, line)
		}
	}
}

// TestStreamOrder: answers come in the order of the requests, whatever the order of the
// commits, and after them.
func TestStreamOrder(t *testing.T) {
	s := mustRPCSite(t, nil)
	s.recorder.held = true
	stream := mustStream(t, s)
	mustSend(t, stream, "a", "b")
	if err := stream.Send(&chipingress.StreamEventsRequest{Event: invalidEvent("bad")}); err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&chipingress.StreamEventsRequest{}); err != nil {
		t.Fatal(err)
	}
	mustSend(t, stream, "e", "f", "g")
	s.recorder.waitUnits(t, 5)
	for unit, err := range map[int]error{4: nil, 3: pipeline.ErrOutcomeUnknown, 2: pipeline.ErrOverloaded, 1: pipeline.ErrUnavailable} {
		s.recorder.answer(unit, err)
	}
	answers := make(chan *chipingress.StreamEventsResponse)
	go func() {
		defer close(answers)
		for {
			answer, err := stream.Recv()
			if err != nil {
				return
			}
			answers <- answer
		}
	}()
	select {
	case early := <-answers:
		t.Errorf("answer %v came before the first event's commit", early)
	case <-time.After(50 * time.Millisecond): // nothing may come, which no signal tells
	}
	s.recorder.answer(0, nil)
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"a OK", "b UNAVAILABLE: ", "bad INVALID_ARGUMENT: source: ", " INVALID_ARGUMENT: event: ",
		"e RESOURCE_EXHAUSTED: ", "f UNAVAILABLE: ", "g OK",
	}
	var got []string
	for answer := range answers {
		got = append(got, answer.EventId+" "+answer.Status)
	}
	if len(got) != len(want) {
		t.Fatalf("answers %q, want %q", got, want)
	}
	for i := range want {
		if !strings.HasPrefix(got[i], want[i]) {
			t.Errorf("answer %d is %q, want %q", i, got[i], want[i])
		}
	}
}

// TestStreamHalfClose: all answers are flushed, then the call ends with OK.
func TestStreamHalfClose(t *testing.T) {
	s := mustRPCSite(t, nil)
	s.recorder.held = true
	stream := mustStream(t, s)
	mustSend(t, stream, "a", "b")
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	s.recorder.waitUnits(t, 2)
	s.recorder.answer(0, nil)
	expect(t, stream, "a OK")
	s.recorder.answer(1, nil)
	expect(t, stream, "b OK")
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the call ended with %v", err)
	}
}

// TestStreamPipelined: reading goes on while earlier events wait, up to the limit.
func TestStreamPipelined(t *testing.T) {
	const limit = 3
	s := mustRPCSite(t, func(c *Config) { c.StreamInFlight = limit })
	s.recorder.held = true
	stream := mustStream(t, s)
	for i := range 10 {
		mustSend(t, stream, fmt.Sprint(i))
	}
	for i := range 10 {
		s.recorder.waitUnits(t, min(i+limit, 10))
		if n := s.recorder.count(); n > i+limit {
			t.Fatalf("%d events are in flight; the limit is %d", n-i, limit)
		}
		s.recorder.answer(i, nil)
		expect(t, stream, fmt.Sprint(i)+" OK")
	}
}

// TestStreamWaitsForBudget: a stream pauses while the budget is used up, and its own
// answers free it.
func TestStreamWaitsForBudget(t *testing.T) {
	s := mustRPCSite(t, nil)
	s.recorder.held = true
	stream := mustStream(t, s)
	mustSend(t, stream, "a")
	s.recorder.waitUnits(t, 1)
	budget := s.intake.Budget()
	rest := budget.Size() - budget.Used()
	budget.TryAcquire(rest)
	mustSend(t, stream, "b")
	s.recorder.answer(0, nil)
	expect(t, stream, "a OK")
	s.recorder.waitUnits(t, 2)
	s.recorder.answer(1, nil)
	expect(t, stream, "b OK")
	budget.Release(rest)
}

// TestStreamDrain: at stop the stream answers what it submitted and ends with UNAVAILABLE,
// though its client would go on.
func TestStreamDrain(t *testing.T) {
	s := mustRPCSite(t, nil)
	s.recorder.held = true
	stream := mustStream(t, s)
	mustSend(t, stream, "a", "b")
	s.recorder.waitUnits(t, 2)
	s.service.Drain()
	s.service.Drain()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		s.server.GracefulStop()
	}()
	s.recorder.answer(1, nil)
	s.recorder.answer(0, nil)
	expect(t, stream, "a OK", "b OK")
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the stream ended with %v", err)
	}
	select {
	case <-stopped:
	case <-time.After(patience):
		t.Error("the server does not stop")
	}
	s.service.Wait()
}

// TestStreamDrainIdle: a stream on which nothing happens ends at stop too, and so does
// one that waits for the budget.
func TestStreamDrainIdle(t *testing.T) {
	s := mustRPCSite(t, nil)
	idle, starved := mustStream(t, s), mustStream(t, s)
	mustSend(t, idle, "a")
	expect(t, idle, "a OK")
	mustSend(t, starved, "b")
	expect(t, starved, "b OK")
	budget := s.intake.Budget()
	rest := budget.Size() - budget.Used()
	budget.TryAcquire(rest)
	mustSend(t, starved, "c")
	s.service.Drain()
	for _, stream := range []clientStream{idle, starved} {
		if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
			t.Errorf("the stream ended with %v", err)
		}
	}
	s.server.GracefulStop()
	s.service.Wait()
	budget.Release(rest)
	if n := s.recorder.count(); n != 2 {
		t.Errorf("%d units", n)
	}
}

// TestStreamDrainFull: an event that was read and never submitted, because the stream was
// full when the stop came, has no answer and holds nothing.
func TestStreamDrainFull(t *testing.T) {
	s := mustRPCSite(t, func(c *Config) { c.StreamInFlight = 1 })
	s.recorder.held = true
	stream := mustStream(t, s)
	mustSend(t, stream, "a")
	s.recorder.waitUnits(t, 1)
	one := s.intake.Budget().Used()
	mustSend(t, stream, "b")
	eventually(t, "the second event is read", func() bool { return s.intake.Budget().Used() == 2*one })
	s.service.Drain()
	s.recorder.answer(0, nil)
	expect(t, stream, "a OK")
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the stream ended with %v", err)
	}
	if n := s.recorder.count(); n != 1 {
		t.Errorf("%d events were submitted", n)
	}
	checkReleased(t, s.intake)
}

// TestStreamClientGone: what a client leaves behind is held until its commit's answer.
func TestStreamClientGone(t *testing.T) {
	s := mustRPCSite(t, nil)
	s.recorder.held = true
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := s.StreamEvents(ctx)
	if err != nil {
		t.Fatal(err)
	}
	mustSend(t, stream, "a", "b")
	s.recorder.waitUnits(t, 2)
	cancel()
	if _, err := stream.Recv(); status.Code(err) != codes.Canceled {
		t.Errorf("error %v", err)
	}
	if s.intake.Budget().Used() == 0 {
		t.Error("the budget was released before the commit's answer")
	}
	s.recorder.answer(0, nil)
	s.recorder.answer(1, nil)
	checkReleased(t, s.intake)
	s.service.Wait()
}
