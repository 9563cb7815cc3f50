package intake

import (
	"errors"
	"net/http"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/waybillhq/waybill/pipeline"
)

// refusal is why a whole unit was not accepted, in the words of both protocols. The text
// is fixed: what the engine's error says of servers and tables is not the client's.
type refusal struct {
	reason     string // in metrics, and the last part of the problem type
	httpStatus int
	code       codes.Code
	title      string
	detail     string
	retryAfter time.Duration
}

// refusalOf translates the engine's error. An error that it does not know is an unknown
// outcome: to call it anything else might promise that nothing was stored.
func (in *Intake) refusalOf(err error) refusal {
	switch {
	case errors.Is(err, pipeline.ErrBacklogFull):
		r := in.overloaded("the backlog is full: as many events wait for the sinks as may")
		r.retryAfter = in.config.UnavailableRetryAfter
		return r
	case errors.Is(err, pipeline.ErrOverloaded):
		return in.overloaded("the queue of events that wait for the database is full")
	case errors.Is(err, pipeline.ErrUnavailable):
		return refusal{
			reason: "unavailable", httpStatus: http.StatusServiceUnavailable, code: codes.Unavailable,
			title:      "Unavailable",
			detail:     "the events cannot be stored just now; nothing was stored; retry later",
			retryAfter: in.config.UnavailableRetryAfter,
		}
	default:
		return refusal{
			reason: "outcome-unknown", httpStatus: http.StatusServiceUnavailable, code: codes.Unavailable,
			title:      "Outcome unknown",
			detail:     "the connection to the database was lost around the commit; the events may be stored; send them again under the same ids, and within the dedupe window they are not stored twice",
			retryAfter: in.config.UnavailableRetryAfter,
		}
	}
}

// overloaded is the refusal of a full buffer.
func (in *Intake) overloaded(what string) refusal {
	return refusal{
		reason: "overloaded", httpStatus: http.StatusTooManyRequests, code: codes.ResourceExhausted,
		title:      "Overloaded",
		detail:     what + "; nothing was stored; retry later",
		retryAfter: in.config.RetryAfter,
	}
}

// overBudget is the refusal of a request whose bytes are not to be had.
func (in *Intake) overBudget() refusal {
	return in.overloaded("the requests in progress hold as many bytes as they may")
}
