package pipeline

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// TailStart says where a tail begins. The zero value is with what is queued from now on.
type TailStart struct {
	// Since is a time by the NATS server's clock: with what was queued from then on and is still kept.
	Since time.Time
	// Lanes are read; none named: all.
	Lanes []int
}

// TailedBatch is a batch as the stream has it.
type TailedBatch struct {
	*Batch
	Seq    uint64    // in the stream
	Stored time.Time // by the NATS server's clock
}

// tailPatience is how long the server may take to answer.
const tailPatience = 5 * time.Second

// Tail reads batches from the stream in the order in which they were queued, until ctx ends or visit
// returns an error. It has a consumer of its own, which the server forgets by itself, and touches nothing
// of the sinks'. ready, which may be nil, is called once nothing that is queued from then on is missed. A
// batch that was retransmitted comes again, with its attempt; what is corrupt is passed over.
func (q *Queue) Tail(ctx context.Context, start TailStart, ready func(), visit func(TailedBatch) error) error {
	setup, cancel := context.WithTimeout(ctx, tailPatience)
	defer cancel()
	stream, err := q.js.Stream(setup, EventsStream)
	if err != nil {
		return notReady(err, "stream "+EventsStream)
	}
	config := jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: stream.CachedInfo().State.LastSeq + 1}
	if !start.Since.IsZero() {
		config.DeliverPolicy, config.OptStartSeq = jetstream.DeliverByStartTimePolicy, 0
		config.OptStartTime = &start.Since
	}
	for _, lane := range start.Lanes {
		config.FilterSubjects = append(config.FilterSubjects, eventSubject(lane))
	}
	consumer, err := stream.OrderedConsumer(setup, config)
	if err != nil {
		return fmt.Errorf("read stream %s: %w", EventsStream, err)
	}
	messages, err := consumer.Messages()
	if err != nil {
		return fmt.Errorf("read stream %s: %w", EventsStream, err)
	}
	defer context.AfterFunc(ctx, messages.Stop)()
	defer messages.Stop()
	if ready != nil {
		ready()
	}
	for {
		msg, err := messages.Next()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("read stream %s: %w", EventsStream, err)
		}
		batch, ok := readTailed(msg)
		if !ok {
			continue
		}
		if err := visit(batch); err != nil {
			return err
		}
	}
}

func readTailed(msg jetstream.Msg) (TailedBatch, bool) {
	meta, err := msg.Metadata()
	if err != nil {
		return TailedBatch{}, false
	}
	lane, ok := laneOfSubject(msg.Subject())
	if !ok {
		return TailedBatch{}, false
	}
	batch, err := parseMessage(lane, msg.Headers(), msg.Data())
	if err != nil {
		return TailedBatch{}, false // a forwarder logs it
	}
	return TailedBatch{Batch: batch, Seq: meta.Sequence.Stream, Stored: meta.Timestamp}, true
}

// laneOfSubject undoes eventSubject; ok is false for any other subject.
func laneOfSubject(subject string) (lane int, ok bool) {
	lane, err := strconv.Atoi(strings.TrimPrefix(subject, "events."))
	return lane, err == nil && eventSubject(lane) == subject
}
