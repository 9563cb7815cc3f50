package pipeline

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/semconv/v1.43.0/messagingconv"
)

// messagingSystem is the queue, as OpenTelemetry's conventions know it.
var messagingSystem = semconv.MessagingSystemKey.String("nats")

// producerMetrics are what OpenTelemetry's conventions have for a client that sends messages:
// batches to EVENTS, receipts to RECEIPTS.
type producerMetrics struct {
	sent     metric.Int64Counter
	duration metric.Float64Histogram
}

func newProducerMetrics(m metric.Meter) (*producerMetrics, error) {
	sent, sentErr := messagingconv.NewClientSentMessages(m)
	duration, durationErr := messagingconv.NewClientOperationDuration(m)
	return &producerMetrics{sent.Inst(), duration.Inst()}, metricsError([]error{sentErr, durationErr})
}

// published takes note of one attempt to store a message in a stream.
func (p *producerMetrics) published(stream string, took time.Duration, err error) {
	attributes := append(make([]attribute.KeyValue, 0, 5), messagingSystem, semconv.MessagingDestinationName(stream),
		semconv.MessagingOperationName("publish"))
	if err != nil {
		attributes = append(attributes, semconv.ErrorTypeKey.String(queueErrorType(err)))
	}
	ctx := context.Background()
	p.sent.Add(ctx, 1, metric.WithAttributeSet(attribute.NewSet(attributes...)))
	p.duration.Record(ctx, took.Seconds(), metric.WithAttributeSet(attribute.NewSet(append(attributes, semconv.MessagingOperationTypeSend)...)))
}

// consumerMetrics are what the conventions have for one that takes messages.
type consumerMetrics struct {
	consumed metric.Int64Counter
	duration metric.Float64Histogram
}

func newConsumerMetrics(m metric.Meter) (*consumerMetrics, error) {
	consumed, consumedErr := messagingconv.NewClientConsumedMessages(m)
	duration, durationErr := messagingconv.NewProcessDuration(m)
	return &consumerMetrics{consumed.Inst(), duration.Inst()}, metricsError([]error{consumedErr, durationErr})
}

// consumption records for the consumers of one group on one stream.
type consumption struct {
	*consumerMetrics
	received metric.MeasurementOption
	common   []attribute.KeyValue
}

func (c *consumerMetrics) of(stream, group string) *consumption {
	common := []attribute.KeyValue{messagingSystem, semconv.MessagingDestinationName(stream), semconv.MessagingConsumerGroupName(group)}
	return &consumption{c, metric.WithAttributeSet(attribute.NewSet(append(common[:3:3], semconv.MessagingOperationName("receive"))...)), common}
}

func (c *consumption) took(messages int) {
	if messages > 0 {
		c.consumed.Add(context.Background(), int64(messages), c.received)
	}
}

// processed takes note of messages that were worked on together, since the first of them came.
// errorType names err, if there is one.
func (c *consumption) processed(since time.Time, err error, errorType func(error) string) {
	attributes := append(make([]attribute.KeyValue, 0, 5), c.common...)
	attributes = append(attributes, semconv.MessagingOperationName("process"))
	if err != nil {
		attributes = append(attributes, semconv.ErrorTypeKey.String(errorType(err)))
	}
	c.duration.Record(context.Background(), time.Since(since).Seconds(), metric.WithAttributeSet(attribute.NewSet(attributes...)))
}

// Values of error.type, beside the numbers of JetStream's own errors.
const (
	errorTimeout      = "timeout"
	errorCanceled     = "canceled"
	errorDisconnected = "disconnected"
	errorNoResponders = "no_responders"
	errorTooLarge     = "too_large"
	errorGivenUp      = "given_up"
	errorOther        = "_OTHER"
)

// queueErrorType names an error of NATS, or of work on its messages, in a metric.
func queueErrorType(err error) string {
	var api *jetstream.APIError
	switch {
	case isTooLarge(err):
		return errorTooLarge
	case errors.As(err, &api):
		return strconv.Itoa(int(api.ErrorCode))
	case errors.Is(err, nats.ErrNoResponders), errors.Is(err, jetstream.ErrNoStreamResponse):
		return errorNoResponders
	case errors.Is(err, nats.ErrConnectionClosed), errors.Is(err, nats.ErrDisconnected), errors.Is(err, nats.ErrReconnectBufExceeded):
		return errorDisconnected
	case errors.Is(err, errDraining), errors.Is(err, errLeaseLost):
		return errorGivenUp
	default:
		return contextErrorType(err)
	}
}

// contextErrorType names the end of a context; any other error is errorOther.
func contextErrorType(err error) string {
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
		return errorTimeout
	case errors.Is(err, context.Canceled):
		return errorCanceled
	default:
		return errorOther
	}
}
