package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
)

// spanSink is an OTLP receiver that counts spans and keeps none. It does not decode them either:
// what a receiver costs is of another machine.
type spanSink struct {
	server *grpc.Server
	addr   string
	ended  chan error
	spans  atomic.Int64
}

// spanSinkMaxBytes is above what an exporter sends at once.
const spanSinkMaxBytes = 64 << 20

func startSpanSink() (*spanSink, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for spans: %w", err)
	}
	s := &spanSink{addr: listener.Addr().String(), ended: make(chan error, 1)}
	s.server = grpc.NewServer(grpc.ForceServerCodecV2(newCallCodec()), grpc.MaxRecvMsgSize(spanSinkMaxBytes), grpc.UnknownServiceHandler(s.take))
	go func() { s.ended <- s.server.Serve(listener) }()
	return s, nil
}

func (s *spanSink) close() error {
	s.server.Stop()
	if err := <-s.ended; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve spans: %w", err)
	}
	return nil
}

// take answers a call of the only service that anybody calls here.
func (s *spanSink) take(_ any, stream grpc.ServerStream) error {
	var spans spanCount
	if err := stream.RecvMsg(&spans); err != nil {
		return err
	}
	s.spans.Add(int64(spans))
	return stream.SendMsg(&collectorpb.ExportTraceServiceResponse{})
}

// Fields on the way from an ExportTraceServiceRequest to its spans.
const (
	resourceSpansField = 1
	scopeSpansField    = 2
	spansField         = 2
)

// spanCount is the number of spans of an ExportTraceServiceRequest.
type spanCount int64

func (n *spanCount) read(wire []byte) error {
	*n = 0
	return eachBytes(wire, resourceSpansField, func(resource []byte) error {
		return eachBytes(resource, scopeSpansField, func(scope []byte) error {
			return eachBytes(scope, spansField, func([]byte) error { *n++; return nil })
		})
	})
}

const (
	// spanDelay is after how long a process sends what it has, if that is little.
	spanDelay = 500 * time.Millisecond
	// Nothing comes any more when nothing came for spansQuiet, which is looked at spansPatience at
	// most.
	spansQuiet    = 4 * spanDelay
	spansPatience = 30 * time.Second
)

// settled waits until no span comes any more, and returns how many came since there were before.
func (s *spanSink) settled(ctx context.Context, before int64) int64 {
	last, since := s.spans.Load(), time.Now()
	for deadline := since.Add(spansPatience); ctx.Err() == nil && time.Now().Before(deadline) && time.Since(since) < spansQuiet; {
		pause(ctx, spanDelay/5)
		if now := s.spans.Load(); now != last {
			last, since = now, time.Now()
		}
	}
	return last - before
}
