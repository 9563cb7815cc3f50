package bench

import (
	"context"
	"errors"
	"fmt"
	"strconv"
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
	h := newHistogram()
	_, err := s.watchQueue(ctx, load, true, func(m jetstream.Msg) error {
		now := time.Now()
		queued, err := strconv.ParseInt(m.Headers().Get(queuedHeader), 10, 64)
		if err != nil {
			return fmt.Errorf("header %s: %w", queuedHeader, err)
		}
		recordInto(h, now.Sub(time.UnixMicro(queued)))
		return nil
	})
	return h, err
}

// watchQueue runs a load and visits its messages, one after another, with one more consumer of EVENTS.
func (s *System) watchQueue(ctx context.Context, load Load, headersOnly bool, visit func(jetstream.Msg) error) (*Stage, error) {
	js, err := jetstream.New(s.nats)
	if err != nil {
		return nil, fmt.Errorf("watch the queue: %w", err)
	}
	consumer, err := js.OrderedConsumer(ctx, pipeline.EventsStream, jetstream.OrderedConsumerConfig{
		DeliverPolicy: jetstream.DeliverNewPolicy, HeadersOnly: headersOnly,
	})
	if err != nil {
		return nil, fmt.Errorf("watch the queue: %w", err)
	}
	var wrong error // the first one; of the consumer until it is closed
	watch, err := consumer.Consume(func(m jetstream.Msg) {
		if err := visit(m); err != nil && wrong == nil {
			wrong = fmt.Errorf("watch the queue: a message's %w", err)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("watch the queue: %w", err)
	}
	st, err := s.Run(ctx, load)
	watch.Stop()
	<-watch.Closed()
	return st, errors.Join(err, wrong)
}

// untilQueued runs a load and returns how long after its acceptance each event came out of the queue.
func (s *System) untilQueued(ctx context.Context, load Load) (*Stage, *hdrhistogram.Histogram, error) {
	type sight struct {
		event int64
		at    tick
	}
	var seen []sight
	st, err := s.watchQueue(ctx, load, false, func(m jetstream.Msg) error {
		now := s.ledger.now()
		var ids arrivals
		if err := ids.read(m.Data()); err != nil {
			return fmt.Errorf("body: %w", err)
		}
		from := 0
		for _, length := range ids.lengths {
			if event, ok := s.ledger.parseID(ids.ids[from : from+length]); ok {
				seen = append(seen, sight{event, now})
			}
			from += length
		}
		return nil
	})
	if err != nil {
		return st, nil, err
	}
	h := newHistogram()
	for _, e := range seen {
		if t := s.ledger.timesOf(e.event); st.inWindow(t.due) && t.accepted != 0 {
			recordInto(h, time.Duration(max(e.at, t.accepted)-t.accepted)*tickLength)
		}
	}
	if h.TotalCount() == 0 {
		return st, nil, errors.New("watch the queue: no event of the load came out of it")
	}
	return st, h, nil
}
