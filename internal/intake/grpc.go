package intake

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/waybillhq/waybill/internal/governor"
	"github.com/waybillhq/waybill/schemas/chipingress"
)

// GRPC is the gRPC face of an intake: it serves chipingress.pb.ChipIngress.
type GRPC struct {
	chipingress.UnimplementedChipIngressServer
	intake   *Intake
	governor *governor.Governor

	drainOnce sync.Once
	draining  chan struct{}  // closed by Drain
	helpers   sync.WaitGroup // two per StreamEvents call, which may outlive the call briefly
}

var _ chipingress.ChipIngressServer = (*GRPC)(nil)

// NewGRPC returns the ChipIngress service. The server that it is registered on must be
// made with ServerOptions. It starts nothing.
func NewGRPC(in *Intake) *GRPC {
	return &GRPC{intake: in, governor: governor.New(in.config.WindowBytes), draining: make(chan struct{})}
}

// Register puts the service on a server.
func (g *GRPC) Register(server grpc.ServiceRegistrar) {
	server.RegisterService(&serviceDesc, g)
}

// Drain ends the open StreamEvents calls with UNAVAILABLE, each after the answers to what
// it has submitted; a grpc.Server's GracefulStop would wait for their clients otherwise.
// It returns at once and may be called more than once.
func (g *GRPC) Drain() { g.drainOnce.Do(func() { close(g.draining) }) }

// Wait returns when nothing of the service runs any more. Call it after the server has
// stopped.
func (g *GRPC) Wait() { g.helpers.Wait() }

// publishOne makes one event durable. A bad one is INVALID_ARGUMENT, with BadRequest details.
func (g *GRPC) publishOne(in *incoming, one *eventRequest) (*chipingress.PublishResponse, error) {
	started := time.Now()
	items := []item{one.item}
	if items[0].fault != nil {
		g.intake.metrics.refusedAll(items)
		return nil, invalidArgument("the event is not valid", items, "")
	}
	return g.publish(in, started, items, one.encoder.held(items))
}

// publishBatch makes the events of a batch durable, in one transaction. results[i] answers
// events[i]: an invalid event has an error there and the others are stored. In a batch with
// transaction_enabled one invalid event fails the call with INVALID_ARGUMENT and nothing is
// stored: an OK whose results name one bad event would tell a client that the rest is in.
func (g *GRPC) publishBatch(in *incoming, batch *batchRequest) (*chipingress.PublishResponse, error) {
	started := time.Now()
	switch {
	case errors.Is(batch.err, errTooManyEvents):
		g.intake.metrics.refusedUnread(frontGRPC, "too-many-events")
		return nil, status.Errorf(codes.InvalidArgument, "the batch holds more than %d events: split it", batch.limit)
	case batch.err != nil:
		g.intake.metrics.refusedUnread(frontGRPC, "malformed-body")
		return nil, status.Errorf(codes.InvalidArgument, "%v; nothing was stored", batch.err)
	}
	items := batch.items
	if faults, _ := countFaults(items); faults > 0 && batch.options.GetTransactionEnabled() {
		g.intake.metrics.refusedAll(items)
		return nil, invalidArgument(
			fmt.Sprintf("%d of %d events are not valid and the batch is transactional; nothing was stored", faults, len(items)),
			items, "events")
	}
	return g.publish(in, started, items, batch.encoder.held(items))
}

// publish submits the valid ones of items, which keep bytes of memory, waits for the commit and
// answers for each.
func (g *GRPC) publish(in *incoming, started time.Time, items []item, bytes int64) (*chipingress.PublishResponse, error) {
	held, ok := in.hold(bytes)
	if !ok {
		return nil, in.refuse()
	}
	if err := g.intake.submit(frontGRPC, started, items, held); err != nil {
		return nil, g.intake.refusalOf(err).status()
	}
	return &chipingress.PublishResponse{Results: resultsOf(items)}, nil
}

// resultsOf returns one result per item, in order, from two allocations.
func resultsOf(items []item) []*chipingress.PublishResult {
	results := make([]*chipingress.PublishResult, len(items))
	values := make([]chipingress.PublishResult, len(items))
	for i := range items {
		results[i] = &values[i]
		results[i].EventId = items[i].id
		if fault := items[i].fault; fault != nil {
			results[i].Error = &chipingress.PublishError{
				ErrorCode: chipingress.PublishErrorCode_PUBLISH_ERROR_CODE_VALIDATION_FAILED,
				Reason:    fault.Error(),
			}
		}
	}
	return results
}

// Ping says that the server can be reached, and no more: readiness is the health service's.
func (g *GRPC) Ping(context.Context, *chipingress.EmptyRequest) (*chipingress.PingResponse, error) {
	return &chipingress.PingResponse{Message: "pong"}, nil
}

// RegisterSchema is refused: there is no registry here.
func (g *GRPC) RegisterSchema(context.Context, *chipingress.RegisterSchemaRequest) (*chipingress.RegisterSchemaResponse, error) {
	return nil, status.Error(codes.Unimplemented,
		"this server keeps no schemas: events are accepted without a registered schema; register it at the destination")
}

func (g *GRPC) encoder(ctx context.Context) *encoder {
	e := &encoder{maxEventBytes: g.intake.config.MaxEventBytes, dedupeAttribute: g.intake.config.DedupeAttribute}
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		e.trace = traceOf(metadataCarrier(md))
	}
	return e
}

// metadataCarrier reads gRPC metadata, whose keys are in lower case.
type metadataCarrier metadata.MD

func (c metadataCarrier) Get(name string) string {
	if values := c[name]; len(values) > 0 {
		return values[0]
	}
	return ""
}

func (c metadataCarrier) Set(name, value string) { c[name] = []string{value} }

func (c metadataCarrier) Keys() []string {
	names := make([]string, 0, len(c))
	for name := range c {
		names = append(names, name)
	}
	return names
}

// status is the refusal as a gRPC status, with RetryInfo.
func (r refusal) status() error {
	return withDetails(status.New(r.code, r.detail), &errdetails.RetryInfo{RetryDelay: durationpb.New(r.retryAfter)})
}

// A status travels in trailers, which many clients limit to 8 KiB, in base64 and beside
// the same text in the message: so few events are named, and briefly.
// Not-ASCII text takes three times its bytes in the message.
const (
	maxViolations  = 6
	maxFieldBytes  = 40
	maxReasonBytes = 120
)

// invalidArgument names the first bad ones of items: in the message for people, and in
// BadRequest details for programs. list is the name of the request's list of events;
// empty if the request is one event.
func invalidArgument(message string, items []item, list string) error {
	details := &errdetails.BadRequest{}
	text := message
	for i := range items {
		fault := items[i].fault
		if fault == nil {
			continue
		}
		if len(details.FieldViolations) == maxViolations {
			text += "; and more"
			break
		}
		field := shorten(fault.Attribute, maxFieldBytes)
		if list != "" {
			field = fmt.Sprintf("%s[%d].%s", list, i, field)
		}
		reason := shorten(fault.Reason, maxReasonBytes)
		details.FieldViolations = append(details.FieldViolations,
			&errdetails.BadRequest_FieldViolation{Field: field, Description: reason})
		text += "; " + field + ": " + reason
	}
	return withDetails(status.New(codes.InvalidArgument, text), details)
}

// shorten cuts s to max bytes at most and an ellipsis, between characters.
func shorten(s string, max int) string {
	if len(s) <= max {
		return s
	}
	for max > 0 && !utf8.RuneStart(s[max]) {
		max--
	}
	return s[:max] + "…"
}

// withDetails adds details, which only a detail that cannot be encoded prevents.
func withDetails(s *status.Status, details ...protoadapt.MessageV1) error {
	if detailed, err := s.WithDetails(details...); err == nil {
		s = detailed
	}
	return s.Err()
}
