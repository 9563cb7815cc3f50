package collector

import (
	"context"
	"errors"
	"fmt"
	"net"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	_ "google.golang.org/grpc/encoding/gzip" // an exporter may be told to compress
)

// Receiver is a server that takes spans by OTLP over gRPC and hands them on.
type Receiver struct {
	collectorpb.UnimplementedTraceServiceServer

	take   func([]Span)
	server *grpc.Server
	addr   string
	ended  chan error
}

var _ collectorpb.TraceServiceServer = (*Receiver)(nil)

// maxRequestBytes is above what an exporter sends at once.
const maxRequestBytes = 64 << 20

// Listen listens on host:port. take gets the spans of each request, and may be called by several
// goroutines at once. What register adds is served too.
func Listen(addr string, take func([]Span), register ...func(grpc.ServiceRegistrar)) (*Receiver, error) {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for spans on %s: %w", addr, err)
	}
	r := &Receiver{
		take: take, addr: listener.Addr().String(), ended: make(chan error, 1),
		server: grpc.NewServer(grpc.MaxRecvMsgSize(maxRequestBytes)),
	}
	collectorpb.RegisterTraceServiceServer(r.server, r)
	for _, add := range register {
		add(r.server)
	}
	go func() { r.ended <- r.server.Serve(listener) }()
	return r, nil
}

// Env are the variables that let a process send its spans here, whatever else its environment
// says of where to. What it samples is left to it.
func (r *Receiver) Env() []string {
	return []string{
		"OTEL_TRACES_EXPORTER=otlp", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://" + r.addr, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=grpc",
	}
}

// Close ends the server.
func (r *Receiver) Close() error {
	r.server.Stop()
	if err := <-r.ended; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve spans: %w", err)
	}
	return nil
}

// Export implements collectorpb.TraceServiceServer.
func (r *Receiver) Export(_ context.Context, request *collectorpb.ExportTraceServiceRequest) (*collectorpb.ExportTraceServiceResponse, error) {
	var spans []Span
	for _, resource := range request.GetResourceSpans() {
		about := attributesOf(resource.GetResource().GetAttributes())
		for _, scope := range resource.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				spans = append(spans, spanOf(about, s))
			}
		}
	}
	r.take(spans)
	return &collectorpb.ExportTraceServiceResponse{}, nil
}
