package intake

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/schemas/chipingress"
)

// statusOK answers an event that is durable. Every other status of StreamEvents is the
// name of a gRPC code, a colon and what is wrong.
const statusOK = "OK"

// maxStatusBytes bounds what an answer says of an event that is not valid: its attributes'
// names and values can be as long as a message.
const maxStatusBytes = 1 << 10

// answerOverhead is charged for an answer beside the event's id and fault: the message, its
// place in the queues and the text of a refusal.
const answerOverhead = 256

// streamEvents answers each request once, in order, after its commit. Requests are read
// and submitted while earlier ones wait, up to StreamInFlight of them and as far as the
// budget goes; then reading pauses. An event is charged to the budget until the engine has
// answered it, and its answer, which is small, until the client has taken it: a client
// that takes none cannot keep the budget from others, and after BodyTimeout its call ends
// with DEADLINE_EXCEEDED. When the client half-closes, all answers are sent and the call
// ends with OK. After Drain it ends with UNAVAILABLE; what has no answer then was not
// stored.
func (g *GRPC) streamEvents(in *incoming) error {
	ctx := in.Context()
	s := newStream(g, in)
	// The reader may sit in Recv, or wait, and the writer in Send, until the call has ended
	// and ctx with it, which is after this returns.
	g.helpers.Go(func() { s.read(ctx) })
	g.helpers.Go(s.write)
	return s.run()
}

// stream is one StreamEvents call. Its reader brings events, encoded and charged to the
// budget, and its writer, which the client can hold up, sends the answers; all else belongs
// to the goroutine of run.
type stream struct {
	intake   *Intake
	in       *incoming // RecvMsg is the reader's, SendMsg the writer's
	encoder  *encoder
	draining <-chan struct{}

	arrivals chan arrival
	readErr  error // why reading ended; written before arrivals is closed

	// Both have room for all of unsent, so that neither run nor the writer waits for the
	// other.
	answers chan *chipingress.StreamEventsResponse
	sent    chan error // one per answer, until the first that is not nil

	waiting []waiting      // for the engine's answer, in the order of the requests
	unsent  []*reservation // of the answers given to the writer, in the same order
	stalled *time.Timer    // runs while anything is unsent, anew for each answer
	ended   bool           // no more arrivals are taken
	end     error          // what the call returns once nothing waits
	gone    bool           // the client takes no more answers
}

func newStream(g *GRPC, in *incoming) *stream {
	s := &stream{
		intake: g.intake, in: in, encoder: g.encoder(in.Context()), draining: g.draining,
		arrivals: make(chan arrival),
		answers:  make(chan *chipingress.StreamEventsResponse, g.intake.config.StreamInFlight),
		sent:     make(chan error, g.intake.config.StreamInFlight),
		stalled:  time.NewTimer(g.intake.config.BodyTimeout),
	}
	s.stalled.Stop()
	return s
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
	answer    <-chan error
	accepting *pipeline.Accepting
}

// read brings requests to run until the stream ends or ctx does. Waiting for the budget is
// what pauses the client.
func (s *stream) read(ctx context.Context) {
	defer close(s.arrivals)
	for {
		request := eventRequest{encoder: s.encoder, wrapped: true}
		if s.readErr = s.in.RecvMsg(&request); s.readErr != nil {
			return
		}
		a := arrival{started: time.Now(), items: []item{answerable(request.item)}}
		if a.held, s.readErr = s.hold(ctx, s.encoder.held(a.items)+answerBytes(&a.items[0])); s.readErr != nil {
			return
		}
		select {
		case s.arrivals <- a:
		case <-ctx.Done():
			a.held.release()
			s.readErr = ctx.Err()
			return
		}
	}
}

// hold takes n bytes for an event, in place of what its arrival took, and waits for them.
func (s *stream) hold(ctx context.Context, n int64) (*reservation, error) {
	if held := s.in.take(); held != nil {
		if held.resize(n) {
			return held, nil
		}
		held.release()
	}
	held, err := s.intake.budget.await(ctx, n)
	if err != nil {
		return nil, status.FromContextError(err).Err()
	}
	return held, nil
}

// answerable returns it with an id and a fault that are short enough to be sent back and
// kept until then.
func answerable(it item) item {
	it.id = strings.Clone(shorten(it.id, pipeline.MaxIDBytes)) // it may be a part of a string with more of the event
	if it.fault != nil {
		fault := *it.fault
		fault.Attribute = shorten(fault.Attribute, maxStatusBytes/4)
		fault.Reason = shorten(fault.Reason, maxStatusBytes/2)
		it.fault = &fault
	}
	return it
}

// answerBytes is what the answer to an answerable item takes in memory, whatever it says.
func answerBytes(it *item) int64 {
	n := answerOverhead + len(it.id)
	if it.fault != nil {
		n += len(it.fault.Attribute) + len(it.fault.Reason)
	}
	return int64(n)
}

// write sends what run hands over, until run ends or the client takes no more.
func (s *stream) write() {
	for response := range s.answers {
		err := s.in.SendMsg(response)
		s.sent <- err
		if err != nil {
			return
		}
	}
}

// run submits what arrives and hands on the answers in order, until reading has ended and
// nothing waits or is unsent any more. It waits for the engine's answers even when the
// client is gone: until then their bytes are held.
func (s *stream) run() error {
	defer close(s.answers)
	defer s.stalled.Stop()
	for {
		select {
		case <-s.draining: // before anything else, so that no arrival slips in after it
			s.stop(errStopping)
		default:
		}
		if s.ended && len(s.waiting) == 0 && len(s.unsent) == 0 {
			return s.end
		}
		s.step()
	}
}

// errStopping ends the streams at stop.
var errStopping = status.Error(codes.Unavailable,
	"the server is stopping; events without an answer were not stored; send them again")

// errNotTaken ends a stream whose client takes no answers.
var errNotTaken = status.Error(codes.DeadlineExceeded,
	"the client took no answer for too long; events without an answer may be stored; take answers while sending")

// step waits for the next thing to do, and does it.
func (s *stream) step() {
	var arrivals <-chan arrival
	var draining <-chan struct{}
	if !s.ended {
		draining = s.draining
		if len(s.waiting)+len(s.unsent) < s.intake.config.StreamInFlight {
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
	case err := <-s.sent:
		s.taken(err)
	case <-s.stalled.C:
		s.abandon(errNotTaken)
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
	w := waiting{arrival: a, answer: answered}
	if a.items[0].fault == nil {
		events := []pipeline.Event{a.items[0].event}
		w.accepting = s.intake.config.Tracing.Accept(frontStream, a.started, events)
		w.answer = s.intake.accepter.Submit(events)
	}
	s.waiting = append(s.waiting, w)
}

// answered is the answer channel of an event that was not submitted: it says what there
// is to say at once, in its turn.
var answered = func() <-chan error {
	c := make(chan error)
	close(c)
	return c
}()

// answer ends the wait of the first request and hands its answer to the writer. From then
// on only the answer is held.
func (s *stream) answer(err error) {
	first := s.waiting[0]
	s.waiting[0] = waiting{}
	s.waiting = s.waiting[1:]
	it := &first.items[0]
	s.intake.metrics.answered(frontStream, first.started, first.items, err)
	first.accepting.Answered(err)
	if s.gone {
		first.held.release()
		return
	}
	first.held.resize(answerBytes(it)) // less than was held, which cannot fail
	if len(s.unsent) == 0 {
		s.stalled.Reset(s.intake.config.BodyTimeout)
	}
	s.unsent = append(s.unsent, first.held)
	s.answers <- &chipingress.StreamEventsResponse{EventId: it.id, Status: s.statusOf(it, err)}
}

// taken notes what became of the first unsent answer.
func (s *stream) taken(err error) {
	switch {
	case s.gone: // it was given up before
	case err != nil:
		s.abandon(err)
	default:
		s.unsent[0].release()
		s.unsent[0] = nil
		s.unsent = s.unsent[1:]
		if len(s.unsent) == 0 {
			s.stalled.Stop()
		} else {
			s.stalled.Reset(s.intake.config.BodyTimeout)
		}
	}
}

// abandon gives up all answers that the client has not taken. The call ends with end even
// if it was about to end otherwise: any other end would say that all answers were sent.
func (s *stream) abandon(end error) {
	s.gone, s.ended, s.end = true, true, end
	s.stalled.Stop()
	for _, held := range s.unsent {
		held.release()
	}
	s.unsent = nil
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
