package replay

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/waybillhq/waybill/pipeline"
)

// streamSource reads the stream. Its positions are sequences.
type streamSource struct {
	config  Config
	span    span
	history *pipeline.History
	from    position
	seen    *recentSet[pipeline.BatchID]
	origins *recentSet[pipeline.Origin] // of events that were requeued, for one sink or for several
	at      atomic.Uint64
	faultList
}

func (c Config) openStream(ctx context.Context, s span, from position) (*streamSource, error) {
	history, err := c.Queue.History(ctx)
	if err != nil {
		return nil, err
	}
	if !history.Created.Equal(s.Created) {
		return nil, fmt.Errorf("the stream was made anew since the replay began, and has lost what it was to replay: replay the rest under another name, with --from=archive")
	}
	return &streamSource{
		config: c, span: s, history: history, from: from,
		seen: newRecentSet[pipeline.BatchID](seenBatches), origins: newRecentSet[pipeline.Origin](seenBatches),
	}, nil
}

func (s *streamSource) read(ctx context.Context, visit func(*portion) error, passed func(uint64) error) error {
	first := max(s.span.First, s.from.Floor+1)
	s.at.Store(first - 1)
	err := s.through(ctx, first, s.span.Body, s.history.Read, func(m pipeline.Logged) error {
		if err := s.message(m, visit); err != nil {
			return err
		}
		return s.passed(m.Seq, passed)
	})
	if err != nil {
		return err
	}
	return s.through(ctx, max(first, s.span.Body+1), s.span.Last, s.history.ReadHeaders, func(m pipeline.Logged) error {
		if m.Batch != nil && s.wanted(m) {
			whole, err := s.history.Message(ctx, m.Seq)
			if err != nil {
				return err
			}
			if err := s.message(whole, visit); err != nil {
				return err
			}
		}
		return s.passed(m.Seq, passed)
	})
}

func (s *streamSource) passed(seq uint64, passed func(uint64) error) error {
	s.at.Store(seq)
	return passed(seq)
}

// reading is History.Read or History.ReadHeaders.
type reading func(ctx context.Context, from, to uint64, visit func(pipeline.Logged) error) error

// through reads past what is missing, which it takes note of.
func (s *streamSource) through(ctx context.Context, from, to uint64, read reading, visit func(pipeline.Logged) error) error {
	for from <= to {
		var gap *pipeline.HistoryGapError
		err := read(ctx, from, to, visit)
		if !errors.As(err, &gap) {
			return err
		}
		s.add("%v: replay them from the archive", gap)
		from = max(gap.To, from+1)
	}
	return nil
}

// message visits what is wanted of a message, unless it was replayed before.
func (s *streamSource) message(m pipeline.Logged, visit func(*portion) error) error {
	if m.Err != nil {
		s.add("message %d of the stream is corrupt: %v; its batch is in Postgres or in the archive", m.Seq, m.Err)
		return nil
	}
	if !s.wanted(m) {
		return nil
	}
	if !s.seen.add(m.Batch.ID) {
		return nil
	}
	if o := m.Batch.Origin; o != nil && (s.seen.has(o.Batch) || !s.origins.add(*o)) {
		return nil
	}
	if m.Seq <= s.from.Lanes[m.Lane] {
		return nil
	}
	if p := s.config.take(m.Seq, m.Batch); p != nil {
		return visit(p)
	}
	return nil
}

func (s *streamSource) wanted(m pipeline.Logged) bool {
	return s.config.lane(m.Lane) && !m.Batch.AcceptedAt.Before(s.span.Since) &&
		(s.span.Until.IsZero() || m.Batch.AcceptedAt.Before(s.span.Until))
}

func (s *streamSource) progress() float64 {
	if s.span.Last < s.span.First {
		return 1
	}
	return float64(s.at.Load()+1-s.span.First) / float64(s.span.Last+1-s.span.First)
}

// seenBatches is how many batches are remembered, to know those that are in the stream again.
const seenBatches = 1 << 20

// recentSet remembers the newest elements, up to a number.
type recentSet[T comparable] struct {
	bound  int
	known  map[T]struct{}
	oldest []T // a ring once it is full
	next   int
}

func newRecentSet[T comparable](bound int) *recentSet[T] {
	return &recentSet[T]{bound: bound, known: map[T]struct{}{}}
}

func (s *recentSet[T]) has(element T) bool {
	_, ok := s.known[element]
	return ok
}

// add reports false for an element that is known.
func (s *recentSet[T]) add(element T) bool {
	if s.has(element) {
		return false
	}
	s.known[element] = struct{}{}
	if len(s.oldest) < s.bound {
		s.oldest = append(s.oldest, element)
		return true
	}
	delete(s.known, s.oldest[s.next])
	s.oldest[s.next] = element
	s.next = (s.next + 1) % s.bound
	return true
}
