package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// call is one call of a load: a message with the ids of its events, which have successive
// numbers.
type call struct {
	message *message
	ledger  *ledger
	first   int64
}

func (c *call) events() int { return len(c.message.ids) }

// outcome is the answer to a call.
type outcome struct {
	// err is why the whole call failed; nil: it was answered.
	err error
	// unknown: the events of a failed call may be stored.
	unknown bool
	// refused are the indexes of events that the answer refuses.
	refused []int
}

// sender makes calls on some connections. It is safe for concurrent use.
type sender interface {
	send(ctx context.Context, c *call) outcome
	close() error
}

// pipelined is a sender of calls that need not wait for one another's answers.
type pipelined interface {
	sender
	// begin sends a call on one of the connections; done is called once, later, from
	// another goroutine.
	begin(ctx context.Context, connection int, c *call, done func(outcome))
	connections() int
}

// failed is the outcome of a call with an error of gRPC.
func failed(err error) outcome {
	switch status.Code(err) {
	case codes.InvalidArgument, codes.ResourceExhausted, codes.Unimplemented, codes.Unauthenticated, codes.PermissionDenied:
		return outcome{err: err}
	default:
		return outcome{err: err, unknown: true}
	}
}

var errAnswer = errors.New("the answer is not one to the call")

func badAnswer(format string, args ...any) outcome {
	return outcome{err: fmt.Errorf("%w: "+format, append([]any{errAnswer}, args...)...), unknown: true}
}

// settle notes the outcome of a call in the ledger.
func (c *call) settle(o outcome, at tick) {
	n := c.events()
	if o.err == nil && !slices.Equal(o.refused, c.message.bad) {
		c.ledger.misjudge(o.refused, c.message.bad)
	}
	switch {
	case o.err != nil:
		marks := uint32(isRefused)
		if o.unknown {
			marks = isUnknown
		}
		for i := range n {
			c.ledger.settle(c.first+int64(i), at, marks)
		}
	case len(o.refused) == 0:
		c.ledger.settleAll(c.first, n, at)
	default:
		refused := make([]bool, n)
		for _, i := range o.refused {
			refused[i] = true
		}
		for i := range n {
			marks := uint32(0)
			if refused[i] {
				marks = isRefused
			}
			c.ledger.settle(c.first+int64(i), at, marks)
		}
	}
}
