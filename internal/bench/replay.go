package bench

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/sinks"
)

// replayBuffer bounds what the server sends ahead of a reader, bytes.
const replayBuffer = 8 << 20

// replayer reads back what a system keeps. read calls visit for each event, from several goroutines
// perhaps, and returns the bytes that it read.
type replayer struct {
	name string
	what string // of the bytes
	read func(ctx context.Context, visit func(id []byte)) (bytes int64, err error)
}

// replayPass is one time that everything was read.
type replayPass struct {
	events, bytes int64
	took          time.Duration
	cpu           time.Duration // of this process
}

func (p replayPass) eventRate() float64 { return float64(p.events) / p.took.Seconds() }
func (p replayPass) byteRate() float64  { return float64(p.bytes) / p.took.Seconds() / (1 << 20) }
func (p replayPass) perEvent() float64 {
	return float64(p.cpu) / float64(time.Microsecond) / float64(max(p.events, 1))
}

// replay reads everything once, and compares it with what was accepted.
func (s *System) replay(ctx context.Context, r replayer) (replayPass, Verdict, error) {
	var p replayPass
	var events, doubled atomic.Int64
	s.ledger.unmark(isReplayed)
	before, err := s.cpu()
	if err != nil {
		return p, Verdict{}, err
	}
	began := time.Now()
	p.bytes, err = r.read(ctx, func(id []byte) {
		event, ours := s.ledger.parseID(id)
		if !ours {
			return
		}
		events.Add(1)
		if s.ledger.mark(event, isReplayed) {
			doubled.Add(1)
			s.ledger.fault("%s: event %s is there twice", r.name, id)
		}
	})
	p.took, p.events = time.Since(began), events.Load()
	if err != nil {
		return p, Verdict{}, fmt.Errorf("%s: %w", r.name, err)
	}
	after, err := s.cpu()
	p.cpu = after[self] - before[self]
	v := s.ledger.judgeBy(Verdict{System: s.Name, Sink: r.name, Doubled: doubled.Load()}, func(_ tick, marks uint32) bool { return marks&isReplayed != 0 })
	v.Retransmits = s.retransmits(ctx)
	return p, v, err
}

// replayQueue reads the messages of EVENTS behind one sequence up to another with a consumer of
// its own, which the server forgets.
func (s *System) replayQueue(behind, last uint64) func(context.Context, func(id []byte)) (int64, error) {
	return func(ctx context.Context, visit func(id []byte)) (bytes int64, err error) {
		js, err := jetstream.New(s.nats)
		if err != nil {
			return 0, err
		}
		consumer, err := js.OrderedConsumer(ctx, pipeline.EventsStream, jetstream.OrderedConsumerConfig{
			DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: behind + 1,
		})
		if err != nil {
			return 0, err
		}
		messages, err := consumer.Messages(jetstream.PullMaxBytes(replayBuffer))
		if err != nil {
			return 0, err
		}
		defer messages.Stop()
		for at := behind; at < last; {
			m, err := messages.Next(jetstream.NextContext(ctx))
			if err != nil {
				return bytes, fmt.Errorf("message behind %d: %w", at, err)
			}
			meta, err := m.Metadata()
			if err != nil {
				return bytes, err
			}
			at = meta.Sequence.Stream
			body := m.Data()
			bytes += int64(len(body))
			var batch arrivals
			if err := batch.read(body); err != nil {
				return bytes, fmt.Errorf("message %d: %w", at, err)
			}
			from := 0
			for _, length := range batch.lengths {
				visit(batch.ids[from : from+length])
				from += length
			}
		}
		return bytes, nil
	}
}

// replayArchive lists, gets and decodes the objects of some lanes at once.
func replayArchive(reader *sinks.ArchiveReader, atOnce int) func(context.Context, func(id []byte)) (int64, error) {
	return func(ctx context.Context, visit func(id []byte)) (int64, error) {
		lanes, err := reader.Lanes(ctx)
		if err != nil {
			return 0, err
		}
		var bytes atomic.Int64
		group, ctx := errgroup.WithContext(ctx)
		group.SetLimit(atOnce)
		for _, lane := range lanes {
			group.Go(func() error {
				for record, err := range reader.Records(ctx, lane, 0) {
					if err != nil {
						return err
					}
					bytes.Add(int64(len(record.Line)) + 1)
					visit([]byte(record.ID))
				}
				return nil
			})
		}
		err = group.Wait()
		return bytes.Load(), err
	}
}
