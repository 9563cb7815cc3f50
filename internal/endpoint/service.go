package endpoint

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/waybillhq/waybill/internal/cloudevent"
	"github.com/waybillhq/waybill/schemas/chipingress"
)

// statusOK is the status of an event of a stream that was taken; the others are
// "<error code>: <reason>".
const statusOK = "OK"

// service is the ChipIngress service over a ledger.
type service struct {
	chipingress.UnimplementedChipIngressServer // RegisterSchema

	ledger *ledger
	taken  func([]*pb.CloudEvent) // nil: nobody wants to know
	rules  atomic.Pointer[rules]
	calls  atomic.Int64 // for FailEvery
}

// Ping answers "pong".
func (s *service) Ping(context.Context, *chipingress.EmptyRequest) (*chipingress.PingResponse, error) {
	return &chipingress.PingResponse{Message: "pong"}, nil
}

// Publish takes one event; a refused one is a result with an error.
func (s *service) Publish(ctx context.Context, event *pb.CloudEvent) (*chipingress.PublishResponse, error) {
	return s.take(ctx, event, []*pb.CloudEvent{event}, false)
}

// PublishBatch takes a batch. With transaction_enabled it answers INVALID_ARGUMENT and
// takes nothing where one event is refused.
func (s *service) PublishBatch(ctx context.Context, batch *chipingress.CloudEventBatch) (*chipingress.PublishResponse, error) {
	return s.take(ctx, batch, batch.GetEvents(), batch.GetOptions().GetTransactionEnabled())
}

// StreamEvents takes one event per message and answers each once, in order.
func (s *service) StreamEvents(stream grpc.BidiStreamingServer[chipingress.StreamEventsRequest, chipingress.StreamEventsResponse]) error {
	for {
		request, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if s.rules.Load().Down {
			return errDown
		}
		event := request.GetEvent()
		response, err := s.take(stream.Context(), request, []*pb.CloudEvent{event}, false)
		if err != nil {
			return err
		}
		answer := &chipingress.StreamEventsResponse{EventId: event.GetId(), Status: statusOK}
		if failure := response.GetResults()[0].GetError(); failure != nil {
			name := strings.TrimPrefix(failure.GetErrorCode().String(), errorCodePrefix)
			answer.Status = name + ": " + failure.GetReason()
		}
		if err := stream.Send(answer); err != nil {
			return err
		}
	}
}

// take applies the behaviour to one request and records the events it accepts.
func (s *service) take(ctx context.Context, request proto.Message, events []*pb.CloudEvent, transaction bool) (*chipingress.PublishResponse, error) {
	rules := s.rules.Load()
	if err := rules.admit(ctx, request, events); err != nil {
		return nil, err
	}
	accepted := make([]Record, 0, len(events))
	results := make([]*chipingress.PublishResult, len(events))
	var taken []*pb.CloudEvent
	for i, event := range events {
		failure := rules.check(event)
		if failure != nil && transaction {
			return nil, status.Errorf(codes.InvalidArgument, "event %d of the transaction: %s", i, failure.GetReason())
		}
		results[i] = &chipingress.PublishResult{EventId: event.GetId(), Error: failure}
		if failure == nil {
			accepted = append(accepted, Record{
				Source: event.GetSource(), Type: event.GetType(), ID: event.GetId(), Seqnum: seqnum(event),
				DataCRC32C: checksum(event), ReplayID: event.GetAttributes()["replayid"].GetCeString(),
			})
			if s.taken != nil {
				taken = append(taken, event)
			}
		}
	}
	if err := s.ledger.add(accepted); err != nil {
		return nil, status.Errorf(codes.Unavailable, "nothing was taken: %v", err)
	}
	if len(taken) > 0 {
		s.taken(taken)
	}
	s.ledger.called(len(events) - len(accepted))
	if n := s.calls.Add(1); rules.FailEvery > 0 && n%int64(rules.FailEvery) == 0 {
		return nil, status.Errorf(codes.Unavailable, "response lost: every call with a number divisible by %d fails", rules.FailEvery)
	}
	return &chipingress.PublishResponse{Results: results}, nil
}

// admit waits the delay out and says why a whole request fails, if it does.
func (r *rules) admit(ctx context.Context, request proto.Message, events []*pb.CloudEvent) error {
	if r.delay > 0 {
		timer := time.NewTimer(r.delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
	if r.Overload {
		return status.Error(codes.ResourceExhausted, "overloaded; try again later")
	}
	if r.MaxMessageBytes > 0 {
		if size := proto.Size(request); size > r.MaxMessageBytes {
			return status.Errorf(codes.ResourceExhausted, "grpc: received message larger than max (%d vs. %d)", size, r.MaxMessageBytes)
		}
	}
	for i, event := range events {
		if r.poisons(event.GetType()) {
			return status.Errorf(codes.InvalidArgument, "event %d: type %q spoils the request", i, event.GetType())
		}
	}
	return nil
}

// check says why one event is refused, or nil.
func (r *rules) check(event *pb.CloudEvent) *chipingress.PublishError {
	for _, required := range []struct{ name, value string }{
		{"id", event.GetId()},
		{"source", event.GetSource()},
		{"type", event.GetType()},
		{"specversion", event.GetSpecVersion()},
	} {
		if required.value == "" {
			return &chipingress.PublishError{
				ErrorCode: chipingress.PublishErrorCode_PUBLISH_ERROR_CODE_VALIDATION_FAILED,
				Reason:    required.name + " is required and must not be empty",
			}
		}
	}
	if r.refuses(event.GetType()) {
		return &chipingress.PublishError{
			ErrorCode: r.refuseCode,
			Reason:    fmt.Sprintf("events of type %q are refused", event.GetType()),
		}
	}
	return nil
}

// seqnum reads the decimal attribute of that name; 0 where there is none.
func seqnum(event *pb.CloudEvent) int64 {
	n, err := strconv.ParseInt(event.GetAttributes()["seqnum"].GetCeString(), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// checksum tells a reader of the records whether the data came through unchanged.
func checksum(event *pb.CloudEvent) uint32 {
	return crc32.Checksum(cloudevent.Data(event), crc32.MakeTable(crc32.Castagnoli))
}
