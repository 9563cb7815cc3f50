package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/waybillhq/waybill/schemas/chipingress"
)

const (
	// receiverMaxBytes is above any request of a forwarder.
	receiverMaxBytes = 16 << 20
	// receiverMinPing lets forwarders ping as often as they are allowed to.
	receiverMinPing = 5 * time.Second
)

// receiver is the ChipIngress endpoint that measured systems deliver to. It notes the number
// and the time of each event and keeps nothing else: `waybill endpoint`, which keeps books
// of everything, would take as much CPU as the rest of the system.
type receiver struct {
	chipingress.UnimplementedChipIngressServer

	server *grpc.Server
	addr   string
	ended  chan error

	ledger atomic.Pointer[ledger]
	delay  atomic.Int64 // nanoseconds that each call waits first
	down   atomic.Bool  // every call is answered with UNAVAILABLE
	taken  atomic.Int64 // calls that were not
}

// startReceiver listens on host:port.
func startReceiver(addr string, l *ledger) (*receiver, error) {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for forwarders on %s: %w", addr, err)
	}
	r := &receiver{addr: listener.Addr().String(), ended: make(chan error, 1)}
	r.ledger.Store(l)
	r.server = grpc.NewServer(
		grpc.ForceServerCodecV2(newCallCodec()), grpc.MaxRecvMsgSize(receiverMaxBytes),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: receiverMinPing, PermitWithoutStream: true}))
	desc := chipingress.ChipIngress_ServiceDesc
	desc.Methods = append([]grpc.MethodDesc(nil), desc.Methods...)
	for i := range desc.Methods {
		if desc.Methods[i].MethodName == "PublishBatch" {
			desc.Methods[i].Handler = receiveBatch
		}
	}
	r.server.RegisterService(&desc, r)
	go func() { r.ended <- r.server.Serve(listener) }()
	return r, nil
}

func (r *receiver) close() error {
	r.server.Stop()
	if err := <-r.ended; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve forwarders: %w", err)
	}
	return nil
}

// Ping implements chipingress.ChipIngressServer.
func (r *receiver) Ping(context.Context, *chipingress.EmptyRequest) (*chipingress.PingResponse, error) {
	if r.down.Load() {
		return nil, status.Error(codes.Unavailable, "the endpoint is down")
	}
	return &chipingress.PingResponse{Message: "pong"}, nil
}

// arrivals are the ids of a CloudEventBatch, one after another, and its PublishResponse.
type arrivals struct {
	ids     []byte
	lengths []int
}

func (a *arrivals) read(wire []byte) error {
	return eachBytes(wire, eventsField, func(event []byte) error {
		before := len(a.ids)
		// The id comes first in the encoding; the rest need not be looked at.
		number, kind, n := protowire.ConsumeTag(event)
		if n < 0 {
			return protowire.ParseError(n)
		}
		if number == eventIDField && kind == protowire.BytesType {
			id, n := protowire.ConsumeBytes(event[n:])
			if n < 0 {
				return protowire.ParseError(n)
			}
			a.ids = append(a.ids, id...)
		}
		a.lengths = append(a.lengths, len(a.ids)-before)
		return nil
	})
}

// marshal is the response: every event was taken.
func (a *arrivals) marshal() mem.BufferSlice {
	pool := mem.DefaultBufferPool()
	buffer := pool.Get(len(a.ids) + 12*len(a.lengths)) // two tags and two lengths of at most 5 bytes each
	wire, from := (*buffer)[:0], 0
	for _, length := range a.lengths {
		id := a.ids[from : from+length]
		from += length
		wire = protowire.AppendTag(wire, resultsField, protowire.BytesType)
		wire = protowire.AppendVarint(wire, uint64(protowire.SizeTag(eventIDField)+protowire.SizeBytes(length)))
		wire = protowire.AppendTag(wire, eventIDField, protowire.BytesType)
		wire = protowire.AppendBytes(wire, id)
	}
	*buffer = wire
	return mem.BufferSlice{mem.NewBuffer(buffer, pool)}
}

func receiveBatch(service any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	r := service.(*receiver)
	a := new(arrivals)
	if err := decode(a); err != nil {
		return nil, err
	}
	if delay := time.Duration(r.delay.Load()); delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		}
	}
	if r.down.Load() {
		return nil, status.Error(codes.Unavailable, "the endpoint is down")
	}
	r.taken.Add(1)
	l, from := r.ledger.Load(), 0
	at := l.now()
	for _, length := range a.lengths {
		l.arrive(a.ids[from:from+length], at)
		from += length
	}
	return a, nil
}
