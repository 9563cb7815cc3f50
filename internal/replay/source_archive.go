package replay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/sinks"
)

// archiveSource reads the archive, lane after lane. Its positions are the offsets at which a lane is
// to be read on.
type archiveSource struct {
	config Config
	span   span
	from   position
	done   atomic.Int64 // offsets that were passed
	faultList
}

func (s *archiveSource) read(ctx context.Context, visit func(*portion) error, passed func(uint64) error) error {
	passedBefore := int64(0)
	for _, lane := range slices.Sorted(maps.Keys(s.span.Ends)) {
		if err := s.deleted(ctx, lane); err != nil {
			return err
		}
		err := s.batches(ctx, lane, func(b *sinks.ArchivedBatch) error {
			s.done.Store(passedBefore + b.Offset)
			p, err := s.portion(b)
			if err != nil {
				return err
			}
			if p != nil {
				if err := visit(p); err != nil {
					return err
				}
			}
			return passed(0)
		})
		if err != nil {
			return err
		}
		passedBefore += s.span.Ends[lane]
		s.done.Store(passedBefore)
	}
	return nil
}

// deleted takes note if the beginning of a lane was deleted, and what was asked for with it. Who asks for
// no time gets what there is.
func (s *archiveSource) deleted(ctx context.Context, lane int) error {
	if s.span.Since.IsZero() || s.from.Lanes[lane] > 0 {
		return nil
	}
	begin, newest, err := s.config.Archive.Begin(ctx, lane)
	if err != nil {
		return err
	}
	if begin > 0 && !newest.Before(s.span.Since) {
		s.add("archive lane %d: the events before offset %d were deleted, which were accepted until %s", lane, begin, newest.Format(time.RFC3339))
	}
	return nil
}

// batches visits the batches of a lane, past what is missing, which it takes note of.
func (s *archiveSource) batches(ctx context.Context, lane int, visit func(*sinks.ArchivedBatch) error) error {
	end := s.span.Ends[lane]
	for from := int64(s.from.Lanes[lane]); from < end; {
		var gap *sinks.ArchiveGapError
		span := sinks.ArchiveSpan{
			From: from, To: end, Since: s.span.Since, Until: s.span.Until, Late: s.config.Late,
		}
		for b, err := range s.config.Archive.Batches(ctx, lane, span) {
			if errors.As(err, &gap) {
				break
			}
			if err == nil {
				err = visit(b)
			}
			if err != nil {
				return err
			}
		}
		if gap == nil {
			return nil
		}
		s.add("%v", gap)
		from = gap.To
	}
	return nil
}

// portion makes a batch of what the archive holds of it; nil if nothing of it is wanted. Events keep
// their indexes, and so their positions.
func (s *archiveSource) portion(b *sinks.ArchivedBatch) (*portion, error) {
	size := 0
	if n := len(b.Dropped); n > 0 {
		size = b.Dropped[n-1] + 1
	}
	_, last := pipeline.SplitPosition(b.Records[len(b.Records)-1].Position)
	batch := &pipeline.Batch{
		ID: b.ID, Lane: b.Lane, AcceptedAt: b.AcceptedAt, QueuedAt: b.AcceptedAt,
		Origin: b.Origin, OriginLane: b.Lane, Events: make([][]byte, max(size, last+1)),
	}
	for _, record := range b.Records {
		if !s.config.key(record.Source, record.Type) {
			continue
		}
		event, err := record.Event()
		if err != nil {
			return nil, err
		}
		encoded, err := proto.Marshal(event)
		if err != nil {
			return nil, fmt.Errorf("archive lane %d, offset %d: encode the event: %w", record.Lane, record.Offset, err)
		}
		_, index := pipeline.SplitPosition(record.Position)
		batch.Events[index] = encoded
	}
	return s.config.take(uint64(b.Offset)+uint64(b.Events), batch), nil
}

func (s *archiveSource) progress() float64 {
	all := int64(0)
	for _, end := range s.span.Ends {
		all += end
	}
	if all == 0 {
		return 1
	}
	return float64(s.done.Load()) / float64(all)
}
