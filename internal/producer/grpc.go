package producer

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/waybillhq/waybill/internal/netfault"
	"github.com/waybillhq/waybill/schemas/chipingress"
)

// grpcTimeout bounds one call.
const grpcTimeout = time.Minute

// statusOK is the status of an accepted event of a stream.
const statusOK = "OK"

// GRPC sends to the service chipingress.pb.ChipIngress.
type GRPC struct {
	conn   *grpc.ClientConn
	client chipingress.ChipIngressClient
	stream bool
}

var _ Sender = (*GRPC)(nil)

// NewGRPC returns a sender to an ingest at host:port. One event is a Publish, several are
// a PublishBatch; or each Send is a StreamEvents call, if stream is set.
func NewGRPC(addr string, secure, stream bool) (*GRPC, error) {
	transport := insecure.NewCredentials()
	if secure {
		transport = credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12})
	}
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(transport))
	if err != nil {
		return nil, fmt.Errorf("%q is no gRPC address; want host:port: %w", addr, err)
	}
	return &GRPC{conn: conn, client: chipingress.NewChipIngressClient(conn), stream: stream}, nil
}

// Close ends the connection.
func (g *GRPC) Close() error { return g.conn.Close() }

// Send implements Sender.
func (g *GRPC) Send(ctx context.Context, events []*pb.CloudEvent) []error {
	ctx, cancel := context.WithTimeout(ctx, grpcTimeout)
	defer cancel()
	switch {
	case g.stream:
		return g.sendStream(ctx, events)
	case len(events) == 1:
		response, err := g.client.Publish(ctx, events[0])
		return readResults(response, err, 1)
	default:
		response, err := g.client.PublishBatch(ctx, &chipingress.CloudEventBatch{Events: events})
		return readResults(response, err, len(events))
	}
}

func readResults(response *chipingress.PublishResponse, err error, events int) []error {
	if err != nil {
		return all(events, readStatus(err))
	}
	errs := all(events, &TryAgainError{Unknown: true, Err: errors.New("the answer has no result for the event")})
	for i, result := range response.GetResults() {
		if i >= events {
			break
		}
		errs[i] = nil
		if failure := result.GetError(); failure != nil {
			errs[i] = &RefusedError{Reason: failure.GetReason()}
		}
	}
	return errs
}

// readStatus tells a refusal from what may be tried again.
func readStatus(err error) error {
	s, _ := status.FromError(err)
	switch s.Code() {
	case codes.InvalidArgument, codes.Unimplemented, codes.Unauthenticated, codes.PermissionDenied:
		return &RefusedError{Reason: s.Message()}
	case codes.ResourceExhausted:
		return &TryAgainError{After: retryDelay(s), Err: err}
	case codes.Unavailable:
		if reason, ok := netfault.Undialed(s.Message()); ok {
			return &TryAgainError{Err: &UnreachableError{Reason: reason, Err: err}}
		}
		if reason, ok := netfault.Mismatch(s.Message()); ok {
			return &RefusedError{Reason: reason}
		}
	}
	return &TryAgainError{After: retryDelay(s), Unknown: !storedNothing(s.Message()), Err: err}
}

// storedNothing recognizes the words of ingest, and of a server that is not there.
func storedNothing(message string) bool {
	return strings.Contains(message, "nothing was stored") || strings.Contains(message, "connection refused")
}

func retryDelay(s *status.Status) time.Duration {
	for _, detail := range s.Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration()
		}
	}
	return 0
}

// sendStream sends the events over one stream, while the answers to earlier ones come in.
func (g *GRPC) sendStream(ctx context.Context, events []*pb.CloudEvent) []error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the sending goroutine too
	stream, err := g.client.StreamEvents(ctx)
	if err != nil {
		return all(len(events), readStatus(err))
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for _, ce := range events {
			if stream.Send(&chipingress.StreamEventsRequest{Event: ce}) != nil {
				return // the receiving side learns why
			}
		}
		_ = stream.CloseSend() // as above
	}()
	errs := make([]error, len(events))
	for i := range events {
		response, err := stream.Recv()
		if err != nil {
			copy(errs[i:], all(len(events)-i, &TryAgainError{Unknown: true, Err: fmt.Errorf("no answer: %w", err)}))
			break
		}
		errs[i] = readStreamStatus(response.GetStatus())
	}
	cancel()
	<-sent
	return errs
}

func readStreamStatus(text string) error {
	code, reason, _ := strings.Cut(text, ": ")
	switch {
	case code == statusOK:
		return nil
	case code == "INVALID_ARGUMENT":
		return &RefusedError{Reason: reason}
	default:
		return &TryAgainError{Unknown: !storedNothing(reason) && code != "RESOURCE_EXHAUSTED", Err: errors.New(text)}
	}
}
