package bench

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/waybillhq/waybill/pipeline"
)

// queuedHeader of a message is when its transaction began, by Postgres's clock, in
// microseconds since 1970.
const queuedHeader = "Waybill-Queued"

// runPropagation measures how soon a consumer of the queue has what was committed.
func runPropagation(ctx context.Context, b *Bench) error {
	return b.with(ctx, "propagation", nil, func(s *System) error {
		for _, part := range []struct {
			rate   float64
			events int
		}{{25, 1}, {1000, 1}, {10_000, 10}} {
			load := standard(fmt.Sprintf("%.0f/s in calls of %d", part.rate, part.events))
			load.Rate, load.Events = part.rate, part.events
			h, err := s.propagation(ctx, load)
			if err != nil {
				return err
			}
			q := quantilesOf(h)
			for _, p := range []struct {
				name  string
				value float64
			}{{"p50", q.P50}, {"p95", q.P95}, {"p99", q.P99}, {"max", q.Max}} {
				b.figure(Absolute, load.Name+": begin of the transaction → a consumer has its message, "+p.name, p.value, "ms")
			}
		}
		return nil
	})
}

// propagation runs a load and watches its messages come, as a forwarder sees them: one more
// consumer of the same stream, of headers only. The time is from the begin of the
// transaction, so that it holds the commit too. The clocks of Postgres and of this process
// must agree.
func (s *System) propagation(ctx context.Context, load Load) (*hdrhistogram.Histogram, error) {
	if s.nats == nil {
		return nil, errors.New("propagation needs the queue: give --nats-url")
	}
	js, err := jetstream.New(s.nats)
	if err != nil {
		return nil, fmt.Errorf("watch the queue: %w", err)
	}
	consumer, err := js.OrderedConsumer(ctx, pipeline.EventsStream, jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverNewPolicy, HeadersOnly: true,
	})
	if err != nil {
		return nil, fmt.Errorf("watch the queue: %w", err)
	}
	var mu sync.Mutex // guards what follows
	h, bad := newHistogram(), 0
	watch, err := consumer.Consume(func(m jetstream.Msg) {
		now := time.Now()
		queued, err := strconv.ParseInt(m.Headers().Get(queuedHeader), 10, 64)
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			bad++
			return
		}
		recordInto(h, now.Sub(time.UnixMicro(queued)))
	})
	if err != nil {
		return nil, fmt.Errorf("watch the queue: %w", err)
	}
	_, err = s.Run(ctx, load)
	watch.Stop()
	<-watch.Closed()
	mu.Lock()
	defer mu.Unlock()
	if bad > 0 {
		err = errors.Join(err, fmt.Errorf("watch the queue: %d messages have no header %s", bad, queuedHeader))
	}
	return h, err
}
