package intake

import (
	"errors"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/waybillhq/waybill/internal/governor"
	"github.com/waybillhq/waybill/pipeline"
)

// Config says how much one request, and all of them together, may ask for. Start from
// DefaultConfig; zero never means "default".
type Config struct {
	// MaxEventBytes bounds one event's protobuf encoding. A larger event is refused
	// alone: HTTP 413, gRPC INVALID_ARGUMENT or VALIDATION_FAILED.
	MaxEventBytes int

	// MaxRequestBytes bounds an HTTP body and a gRPC message.
	MaxRequestBytes int

	// MaxRequestEvents bounds the events of one request: an empty event is two bytes on
	// the wire and some hundred in memory, and the response to a full batch must stay
	// below the 4 MiB that gRPC clients take by default.
	MaxRequestEvents int

	// BudgetBytes bounds what all requests hold together, from before a body is read
	// until its events are answered for. Beyond it: 429 and RESOURCE_EXHAUSTED.
	BudgetBytes int64

	// WindowBytes bounds what gRPC calls together may send before there is room for their
	// messages in the budget: 16 KiB each, or 4 on later connections of many. A stream
	// counts for as long as it is open, any other call until its message has been read.
	// Beyond it: RESOURCE_EXHAUSTED.
	WindowBytes int64

	// MaxWaiting is how many wait for the budget before gRPC calls with one message are
	// refused instead of waiting too.
	MaxWaiting int

	// BodyTimeout is how long the body of an HTTP request may take to arrive, and the
	// response to be taken. A StreamEvents call ends when its client takes no answer for so
	// long.
	BodyTimeout time.Duration

	// RetryAfter is what a client is told to wait when a buffer is full, and
	// UnavailableRetryAfter when the database cannot be reached. Over HTTP they are
	// rounded up to seconds.
	RetryAfter            time.Duration
	UnavailableRetryAfter time.Duration

	// MaxStreams bounds the concurrent gRPC calls of one connection.
	MaxStreams uint32

	// MinPing is the least time between the keepalive pings of a gRPC client; a client
	// that pings more often is disconnected. Known clients ping every 10 s, without calls
	// too.
	MinPing time.Duration

	// StreamInFlight bounds the events of one StreamEvents call that are read and whose
	// answer the client has not taken yet. Beyond it reading pauses, which the client feels as flow control.
	StreamInFlight int

	// MetricKeys is how many (source, type) pairs have metrics of their own: the first
	// ones accepted. The rest counts under "other".
	MetricKeys int

	// DedupeAttribute names the extension attribute that says which events of a source are
	// the same one. It stands in for the id where an event has it; "" is none.
	DedupeAttribute string

	// Meter makes the instruments.
	Meter metric.Meter

	// Tracing makes the spans of accepted events; nil: none.
	Tracing *pipeline.Tracing
}

// DefaultConfig returns the limits of docs/api.md, and no metrics.
func DefaultConfig() Config {
	return Config{
		MaxEventBytes:         pipeline.DefaultMaxEventBytes,
		MaxRequestBytes:       16 << 20, // peers split their batches just under 10 MiB
		MaxRequestEvents:      1 << 16,  // 10 MiB of events of 160 bytes
		BudgetBytes:           72 << 20,
		WindowBytes:           16 << 20, // 1024 calls on few connections
		MaxWaiting:            256,
		BodyTimeout:           30 * time.Second,
		RetryAfter:            time.Second,
		UnavailableRetryAfter: 5 * time.Second, // about what a failover of Postgres needs
		MaxStreams:            1024,
		MinPing:               5 * time.Second,
		StreamInFlight:        256,
		MetricKeys:            200,
		Meter:                 noop.NewMeterProvider().Meter("waybill/intake"),
	}
}

// Validate returns one error that names every field that is wrong, and its remedy.
func (c Config) Validate() error {
	var errs []error
	demand := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf("intake: "+format, args...))
		}
	}
	demand(c.MaxEventBytes > 0, "MaxEventBytes (WAYBILL_MAX_EVENT_BYTES) is %d: set it to 1 or more", c.MaxEventBytes)
	demand(c.MaxRequestBytes >= c.MaxEventBytes,
		"MaxRequestBytes (WAYBILL_MAX_REQUEST_BYTES) is %d, less than MaxEventBytes (%d): raise it, or no event of that size could be sent",
		c.MaxRequestBytes, c.MaxEventBytes)
	demand(c.MaxRequestBytes <= 1<<30, "MaxRequestBytes (WAYBILL_MAX_REQUEST_BYTES) is %d: set it to 1 GiB or less", c.MaxRequestBytes)
	demand(c.MaxRequestEvents > 0, "MaxRequestEvents (WAYBILL_MAX_REQUEST_EVENTS) is %d: set it to 1 or more", c.MaxRequestEvents)
	demand(c.BudgetBytes >= arrivalBytes(int64(c.MaxRequestBytes))+requestOverhead,
		"BudgetBytes (WAYBILL_BUDGET_BYTES) is %d: it must hold twice one request of MaxRequestBytes (%d) and %d bytes of headers",
		c.BudgetBytes, c.MaxRequestBytes, requestOverhead)
	demand(c.WindowBytes >= governor.Window, "WindowBytes is %d: set it to %d or more, a window for each call", c.WindowBytes, governor.Window)
	demand(c.MaxWaiting > 0, "MaxWaiting is %d: set it to 1 or more", c.MaxWaiting)
	demand(c.BodyTimeout > 0, "BodyTimeout is %v: set it to a positive time", c.BodyTimeout)
	demand(c.RetryAfter > 0, "RetryAfter is %v: set it to a positive time", c.RetryAfter)
	demand(c.UnavailableRetryAfter > 0, "UnavailableRetryAfter is %v: set it to a positive time", c.UnavailableRetryAfter)
	demand(c.MaxStreams > 0, "MaxStreams is %d: set it to 1 or more", c.MaxStreams)
	demand(c.MinPing > 0, "MinPing is %v: set it to a positive time, 10s or less", c.MinPing)
	demand(c.StreamInFlight > 0, "StreamInFlight is %d: set it to 1 or more", c.StreamInFlight)
	demand(c.MetricKeys >= 0, "MetricKeys is %d: set it to 0 or more", c.MetricKeys)
	if err := pipeline.CheckIdentifyingAttribute(c.DedupeAttribute); err != nil {
		errs = append(errs, fmt.Errorf("intake: %w", err))
	}
	demand(c.Meter != nil, "Meter is nil: take DefaultConfig's if no metrics are wanted")
	return errors.Join(errs...)
}

// patientShare is how much of the budget those may hold who can wait for it: half, but
// enough for one message.
func (c Config) patientShare() int64 {
	return max(c.BudgetBytes/2, arrivalBytes(int64(c.MaxRequestBytes)+messageSlack))
}
