package intake

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/schemas/chipingress"
)

// statusOK answers an event that is durable. Every other status of StreamEvents is the
// name of a gRPC code, a colon and what is wrong.
const statusOK = "OK"

type eventStream = grpc.BidiStreamingServer[chipingress.StreamEventsRequest, chipingress.StreamEventsResponse]

// StreamEvents answers each request once, in order, after its commit. Requests are read
// and submitted while earlier ones wait, up to StreamInFlight of them and as far as the
// budget goes; then reading pauses. When the client half-closes, all answers are sent and
// the call ends with OK. After Drain it ends with UNAVAILABLE; what has no answer then was
// not stored.
func (g *GRPC) StreamEvents(rpc eventStream) error {
	ctx := rpc.Context()
	s := &stream{intake: g.intake, rpc: rpc, encoder: g.encoder(ctx), arrivals: make(chan arrival), draining: g.draining}
	// The reader may sit in Recv, or wait, until the call has ended and ctx with it, which
	// is after this returns.
	g.readers.Go(func() { s.read(ctx) })
	return s.run()
}

// stream is one StreamEvents call. Its reader brings events, encoded and charged to the
// budget; all else belongs to the goroutine of run.
type stream struct {
	intake   *Intake
	rpc      eventStream
	encoder  *encoder
	draining <-chan struct{}

	arrivals chan arrival
	readErr  error // why reading ended; written before arrivals is closed

	waiting []waiting // in the order of the requests
	ended   bool      // no more arrivals are taken
	end     error     // what the call returns once nothing waits
	gone    bool      // the client takes no more answers
}

// arrival is a request that was read.
type arrival struct {
	items   []item // one
	started time.Time
	held    *reservation
}

// waiting is a request whose answer is to come.
type waiting struct {
	arrival
	answer <-chan error
}

// read brings requests to run until the stream ends or ctx does. Waiting for the budget is
// what pauses the client.
func (s *stream) read(ctx context.Context) {
	defer close(s.arrivals)
	for {
		request, err := s.rpc.Recv()
		if err != nil {
			s.readErr = err
			return
		}
		a := arrival{started: time.Now(), items: []item{s.encoder.item(request.GetEvent(), nil)}}
		n := heldBytes(a.items)
		if err := s.intake.budget.Acquire(ctx, n); err != nil {
			s.readErr = err
			return
		}
		a.held = &reservation{budget: s.intake.budget, held: n}
		select {
		case s.arrivals <- a:
		case <-ctx.Done():
			a.held.release()
			s.readErr = ctx.Err()
			return
		}
	}
}

// run submits what arrives and answers in order, until reading has ended and nothing
// waits any more. It waits for the engine's answers even when the client is gone: until
// then their bytes are held.
func (s *stream) run() error {
	for {
		select {
		case <-s.draining: // before anything else, so that no arrival slips in after it
			s.stop(errStopping)
		default:
		}
		if s.ended && len(s.waiting) == 0 {
			return s.end
		}
		s.step()
	}
}

// errStopping ends the streams at stop.
var errStopping = status.Error(codes.Unavailable,
	"the server is stopping; events without an answer were not stored; send them again")

// step waits for the next thing to do, and does it.
func (s *stream) step() {
	var arrivals <-chan arrival
	var draining <-chan struct{}
	if !s.ended {
		draining = s.draining
		if len(s.waiting) < s.intake.config.StreamInFlight {
			arrivals = s.arrivals
		}
	}
	var first <-chan error
	if len(s.waiting) > 0 {
		first = s.waiting[0].answer
	}
	select {
	case a, ok := <-arrivals:
		if ok {
			s.submit(a)
		} else {
			s.stop(endOf(s.readErr))
		}
	case err := <-first:
		s.answer(err)
	case <-draining: // run sees it
	}
}

func (s *stream) stop(end error) {
	if !s.ended {
		s.ended, s.end = true, end
	}
}

// endOf is the call's status after reading ended with err.
func endOf(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func (s *stream) submit(a arrival) {
	answer := answered
	if a.items[0].fault == nil {
		answer = s.intake.accepter.Submit([]pipeline.Event{a.items[0].event})
	}
	s.waiting = append(s.waiting, waiting{arrival: a, answer: answer})
}

// answered is the answer channel of an event that was not submitted: it says what there
// is to say at once, in its turn.
var answered = func() <-chan error {
	c := make(chan error)
	close(c)
	return c
}()

// answer ends the first waiting request. A client that does not take the answer gets no
// further ones.
func (s *stream) answer(err error) {
	first := s.waiting[0]
	s.waiting[0] = waiting{}
	s.waiting = s.waiting[1:]
	first.held.release()
	s.intake.metrics.answered(frontStream, first.started, first.items, err)
	if s.gone {
		return
	}
	response := &chipingress.StreamEventsResponse{EventId: first.items[0].id, Status: s.statusOf(&first.items[0], err)}
	if err := s.rpc.Send(response); err != nil {
		s.gone = true
		s.stop(err)
	}
}

// statusOf is the status of one answer, as docs/api.md lists them.
func (s *stream) statusOf(it *item, err error) string {
	switch {
	case it.fault != nil:
		return "INVALID_ARGUMENT: " + it.fault.Error()
	case err == nil:
		return statusOK
	}
	r := s.intake.refusalOf(err)
	if r.code == codes.ResourceExhausted {
		return "RESOURCE_EXHAUSTED: " + r.detail
	}
	return "UNAVAILABLE: " + r.detail
}
