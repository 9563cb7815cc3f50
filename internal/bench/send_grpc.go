package bench

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/waybillhq/waybill/schemas/chipingress"
)

// callTimeout bounds one call.
const callTimeout = 30 * time.Second

// dial opens connections that make calls one by one.
func dial(addr string, connections int) ([]*grpc.ClientConn, error) {
	var conns []*grpc.ClientConn
	for range connections {
		conn, err := grpc.NewClient("passthrough:"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.ForceCodecV2(newCallCodec()), grpc.WaitForReady(true)), grpc.WithDisableRetry())
		if err != nil {
			return nil, errors.Join(fmt.Errorf("connect to %s: %w", addr, err), closeAll(conns))
		}
		conns = append(conns, conn)
	}
	return conns, nil
}

func closeAll(conns []*grpc.ClientConn) error {
	var errs []error
	for _, conn := range conns {
		errs = append(errs, conn.Close())
	}
	return errors.Join(errs...)
}

// unarySender makes a Publish or a PublishBatch of each call.
type unarySender struct {
	conns []*grpc.ClientConn
	next  atomic.Uint64
}

func newUnarySender(addr string, connections int) (*unarySender, error) {
	conns, err := dial(addr, connections)
	return &unarySender{conns: conns}, err
}

func (s *unarySender) close() error { return closeAll(s.conns) }

func (s *unarySender) send(ctx context.Context, c *call) outcome {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	method := chipingress.ChipIngress_PublishBatch_FullMethodName
	if c.events() == 1 {
		method = chipingress.ChipIngress_Publish_FullMethodName
	}
	var answer publishAnswer
	err := s.conns[s.next.Add(1)%uint64(len(s.conns))].Invoke(ctx, method, c, &answer)
	if err != nil {
		return failed(err)
	}
	if answer.results != c.events() {
		return badAnswer("%d results for %d events", answer.results, c.events())
	}
	return outcome{refused: answer.refused}
}

// streamSender sends each call over one of several StreamEvents calls.
type streamSender struct {
	conns   []*grpc.ClientConn
	streams []*stream
	next    atomic.Uint64
	stop    context.CancelFunc
}

var _ pipelined = (*streamSender)(nil)

// stream is one StreamEvents call, which answers in the order of sending.
type stream struct {
	client grpc.ClientStream
	ended  chan struct{} // closed when no answer comes any more

	mu      sync.Mutex      // held while sending, so that waiting is in the order of sending
	waiting []func(outcome) // of messages without an answer
	err     error           // why the stream ended
}

func newStreamSender(addr string, connections int) (*streamSender, error) {
	conns, err := dial(addr, connections)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	s := &streamSender{conns: conns, stop: stop}
	for _, conn := range conns {
		client, err := conn.NewStream(ctx, &chipingress.ChipIngress_ServiceDesc.Streams[0], chipingress.ChipIngress_StreamEvents_FullMethodName)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open a stream to %s: %w", addr, err), s.close())
		}
		st := &stream{client: client, ended: make(chan struct{})}
		s.streams = append(s.streams, st)
		go st.receive()
	}
	return s, nil
}

func (s *streamSender) close() error {
	s.stop()
	for _, st := range s.streams {
		<-st.ended
	}
	return closeAll(s.conns)
}

func (s *streamSender) connections() int { return len(s.streams) }

func (s *streamSender) begin(_ context.Context, connection int, c *call, done func(outcome)) {
	st := s.streams[connection]
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.err == nil {
		st.waiting = append(st.waiting, done)
		_ = st.client.SendMsg(c) // receive learns why, and answers
		return
	}
	err := st.err
	go done(outcome{err: err})
}

func (s *streamSender) send(ctx context.Context, c *call) outcome {
	answered := make(chan outcome, 1)
	s.begin(ctx, int(s.next.Add(1)%uint64(len(s.streams))), c, func(o outcome) { answered <- o })
	return <-answered
}

// receive hands out answers until the stream ends; what waits then has none.
func (st *stream) receive() {
	defer close(st.ended)
	var answer streamAnswer
	for {
		err := st.client.RecvMsg(&answer)
		if err != nil {
			st.end(err)
			return
		}
		st.mu.Lock()
		done := st.waiting[0]
		st.waiting = st.waiting[1:]
		st.mu.Unlock()
		if answer.taken {
			done(outcome{})
		} else {
			done(outcome{err: errors.New(answer.status), unknown: true})
		}
	}
}

func (st *stream) end(err error) {
	st.mu.Lock()
	st.err = err
	waiting := st.waiting
	st.waiting = nil
	st.mu.Unlock()
	for _, done := range waiting {
		done(outcome{err: err, unknown: true})
	}
}
