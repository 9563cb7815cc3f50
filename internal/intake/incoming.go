package intake

import (
	"context"
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/waybillhq/waybill/internal/governor"
)

// arrivalFactor is how much memory a body or message takes, in its own size, while it is
// read: itself, and the encodings of its events that are made of it, one after another.
const arrivalFactor = 2

// arrivalBytes is what is charged for size bytes that are about to come.
func arrivalBytes(size int64) int64 { return arrivalFactor * size }

// incoming is a gRPC call whose messages come in as far as the budget goes. A message
// within the first window is there already. A larger one waits for the budget in line; what
// it got is held until the handler takes it, or until the next message.
type incoming struct {
	grpc.ServerStream
	intake *Intake
	call   *governor.Call // nil: a connection that is not governed
	alone  bool           // the call has one message
	held   *reservation   // of the newest message; nil when it was small
}

var _ grpc.ServerStream = (*incoming)(nil)

// govern wraps the streams of handlers that do not do so themselves. It is a
// grpc.StreamServerInterceptor, which grpc uses for calls of more than one message or answer.
func (g *GRPC) govern(service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	return g.timed(info.FullMethod, func() error {
		return g.governed(stream, !info.IsClientStream, func(in *incoming) error { return handler(service, in) })
	})
}

// governed calls handle with the stream as an incoming one. Alone says that it has one
// message.
func (g *GRPC) governed(stream grpc.ServerStream, alone bool, handle func(*incoming) error) error {
	in := &incoming{ServerStream: stream, intake: g.intake, alone: alone, call: governor.FromContext(stream.Context())}
	if in.call != nil {
		if !in.call.Handle() {
			return status.Error(codes.Canceled, "the call is over")
		}
		defer in.call.End()
	}
	if in.alone { // else another goroutine may read on, and sees to it
		defer in.drop()
	}
	if err := refuseCompressed(in.Context()); err != nil {
		return err
	}
	return handle(in)
}

// RecvMsg implements grpc.ServerStream. Its errors are statuses.
func (in *incoming) RecvMsg(m any) error {
	in.drop()
	if in.call == nil {
		return in.ServerStream.RecvMsg(m)
	}
	if err := in.admit(in.Context()); err != nil {
		in.drop()
		return err
	}
	if err := in.ServerStream.RecvMsg(m); err != nil {
		in.drop()
		return err
	}
	in.call.Taken()
	return nil
}

// admit waits for the next message until it is there, and before its larger part comes,
// for the budget.
func (in *incoming) admit(ctx context.Context) error {
	config := &in.intake.config
	timeout := config.BodyTimeout
	if !in.alone {
		timeout = 0 // a stream may be idle
	}
	size, err := in.call.Begun(ctx, in.alone, timeout)
	if err != nil {
		return in.notCome(err)
	}
	if size == 0 || size > int64(config.MaxRequestBytes+messageSlack) {
		return nil // it is there; or grpc refuses it by its announcement
	}
	if err := in.reserve(ctx, size); err != nil {
		return err
	}
	in.call.Allow()
	if err := in.call.Complete(ctx, config.BodyTimeout); err != nil {
		return in.notCome(err)
	}
	return nil
}

// reserve waits for the bytes of a message of size. A call of one message is refused when
// many wait, and when it waited for long; its client can come again. A stream waits.
func (in *incoming) reserve(ctx context.Context, size int64) (err error) {
	budget, config := in.intake.budget, &in.intake.config
	n := min(arrivalBytes(size), budget.share)
	if !in.alone {
		if in.held, err = budget.await(ctx, n); err != nil {
			return status.FromContextError(err).Err()
		}
		return nil
	}
	if budget.Waiting() >= config.MaxWaiting {
		return in.refuse()
	}
	limited, cancel := context.WithTimeout(ctx, config.BodyTimeout)
	defer cancel()
	if in.held, err = budget.await(limited, n); err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return status.FromContextError(ctx.Err()).Err()
	}
	return in.refuse()
}

func (in *incoming) refuse() error {
	in.intake.metrics.refusedUnread(frontGRPC, "overloaded")
	return in.intake.overBudget().status()
}

func (in *incoming) notCome(err error) error {
	if !errors.Is(err, governor.ErrSlow) {
		return status.FromContextError(err).Err()
	}
	in.intake.metrics.refusedUnread(frontGRPC, "body-timeout")
	return status.Errorf(codes.DeadlineExceeded, "the message did not arrive within %v; nothing was stored", in.intake.config.BodyTimeout)
}

// take returns what is held for the newest message, which is now the caller's to release;
// nil is nothing.
func (in *incoming) take() *reservation {
	held := in.held
	in.held = nil
	return held
}

// drop releases what is held for the newest message.
func (in *incoming) drop() {
	if held := in.take(); held != nil {
		held.release()
	}
}

// hold takes n bytes for the events of the call's only message, in place of what their
// arrival took; false means that they are not to be had.
func (in *incoming) hold(n int64) (*reservation, bool) {
	if in.call != nil {
		defer in.call.ReturnWindow()
	}
	if held := in.take(); held != nil {
		if held.resize(n) {
			return held, true
		}
		held.release()
	}
	return in.intake.budget.reserve(n)
}
