package replay

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"golang.org/x/sync/errgroup"

	"github.com/waybillhq/waybill/pipeline"
)

const (
	// requestBytes bounds the events of one request, and memory those of all that are gathered or
	// under way: what is beyond goes out in small requests.
	requestBytes = 2 << 20
	memory       = 64 << 20
	// gatherFor is how long at least a request is gathered before it goes.
	gatherFor = time.Second

	backoffMin, backoffMax = 100 * time.Millisecond, 5 * time.Second
)

// sender delivers portions, of a lane one request after another, of several lanes at once. Its
// reader's side (take, passed, finish) belongs to one goroutine.
type sender struct {
	config  Config
	limits  pipeline.Limits
	linger  time.Duration
	tracker *tracker
	tally   *tally
	pacer   *pacer
	slots   chan struct{}
	trouble atomic.Pointer[string] // of the newest request; nil: none

	group   *errgroup.Group
	ctx     context.Context // ends when a lane fails
	lanes   map[int]*laneSender
	held    atomic.Int64 // bytes
	flushed time.Time
}

// laneSender is one lane.
type laneSender struct {
	open  *request // nil: none
	queue chan *request
}

func newSender(ctx context.Context, c Config, t *tracker, counts *tally) *sender {
	s := &sender{
		config: c, limits: c.Sink.Limits(), tracker: t, tally: counts, pacer: newPacer(c.Rate),
		slots: make(chan struct{}, c.InFlight), lanes: map[int]*laneSender{}, flushed: time.Now(),
	}
	s.linger = max(s.limits.Linger, gatherFor)
	s.limits.Bytes = min(s.limits.Bytes, requestBytes)
	if c.Rate > 0 {
		s.limits.Events = min(s.limits.Events, max(1, int(c.Rate*s.linger.Seconds())))
	}
	s.group, s.ctx = errgroup.WithContext(ctx)
	return s
}

func (s *sender) lane(lane int) *laneSender {
	l, ok := s.lanes[lane]
	if !ok {
		l = &laneSender{queue: make(chan *request)}
		s.lanes[lane] = l
		s.group.Go(func() error { return s.work(l) })
	}
	return l
}

// take gathers a portion. It waits while too much is under way.
func (s *sender) take(p *portion) error {
	l := s.lane(p.batch.Lane)
	if l.open != nil && !l.open.fits(p, s.limits) {
		if err := s.flush(l); err != nil {
			return err
		}
	}
	if l.open == nil {
		l.open = &request{lane: p.batch.Lane}
		s.tracker.begin(p.batch.Lane, p.at)
	}
	l.open.add(p)
	if l.open.full(s.limits) {
		s.held.Add(int64(p.bytes))
		return s.flush(l)
	}
	if s.held.Add(int64(p.bytes)) > memory {
		return s.flushAll()
	}
	return nil
}

// passed takes note that the reader is beyond a position, and sends what was gathered for long.
func (s *sender) passed(at uint64) error {
	s.tracker.passed(at)
	if time.Since(s.flushed) < s.linger {
		return s.ctx.Err()
	}
	return s.flushAll()
}

func (s *sender) flushAll() error {
	s.flushed = time.Now()
	for _, l := range s.lanes {
		if err := s.flush(l); err != nil {
			return err
		}
	}
	return nil
}

func (s *sender) flush(l *laneSender) error {
	if l.open == nil {
		return nil
	}
	select {
	case l.queue <- l.open:
		l.open = nil
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

// finish sends the rest, unless reading has failed, and waits for all. It returns the first error of
// a lane, or else that of reading.
func (s *sender) finish(readErr error) error {
	if readErr == nil {
		readErr = s.flushAll()
	}
	for _, l := range s.lanes {
		close(l.queue)
	}
	if err := s.group.Wait(); err != nil {
		return err
	}
	return readErr
}

func (s *sender) work(l *laneSender) error {
	for r := range l.queue {
		results, err := s.deliver(r)
		if err != nil {
			return fmt.Errorf("lane %d: %w", r.lane, err)
		}
		s.held.Add(-int64(r.bytes))
		s.tally.add(func(c *Counts) { // at once, so that a state has both or neither
			c.outcome(r, results)
			s.tracker.end(r.lane, r.last)
		})
	}
	return nil
}

// deliver sends a request until each event has a final result, and returns these.
func (s *sender) deliver(r *request) ([]pipeline.Result, error) {
	if err := s.pacer.wait(s.ctx, len(r.items)); err != nil {
		return nil, err
	}
	pauses := backoff.NewExponentialBackOff()
	pauses.InitialInterval, pauses.MaxInterval = backoffMin, backoffMax
	pauses.Reset()
	taken := time.Now() // when the sink last took something of the request
	results := make([]pipeline.Result, len(r.items))
	for pending := all(len(r.items)); ; {
		again, err := s.try(r, pending, results)
		if err != nil {
			s.trouble.Store(pointer(err.Error()))
			if s.ctx.Err() != nil {
				return nil, s.ctx.Err()
			}
		}
		if len(again) == 0 {
			s.trouble.Store(nil)
			return results, nil
		}
		if len(again) < len(pending) {
			taken = time.Now()
			pauses.Reset()
		}
		pending = again
		if time.Since(taken) > s.config.RetryFor {
			return nil, fmt.Errorf("the sink took nothing for %v: %w", s.config.RetryFor, err)
		}
		if err := sleep(s.ctx, pauses.NextBackOff()); err != nil {
			return nil, err
		}
	}
}

var errMismatch = errors.New("the sink returned a result for other than each item")

// try sends the pending items once, stores their results and returns those to be tried again, with
// the reason.
func (s *sender) try(r *request, pending []int, results []pipeline.Result) (again []int, err error) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-s.ctx.Done():
		return pending, s.ctx.Err()
	}
	items := r.items
	if len(pending) < len(items) {
		items = make([]pipeline.Item, len(pending))
		for i, at := range pending {
			items[i] = r.items[at]
		}
	}
	got, err := s.config.Sink.Send(s.ctx, r.lane, items)
	if err == nil && len(got) != len(items) {
		err = errMismatch
	}
	if err == nil {
		for i, at := range pending {
			if results[at] = got[i]; got[i].Verdict == pipeline.Retry {
				again = append(again, at)
				err = errors.New(got[i].Reason)
			}
		}
	} else {
		again = pending
	}
	s.tally.add(func(c *Counts) {
		c.Requests++
		if len(again) > 0 {
			c.Repeated++
		}
	})
	return again, err
}

func all(n int) []int {
	indexes := make([]int, n)
	for i := range indexes {
		indexes[i] = i
	}
	return indexes
}

func pointer[T any](v T) *T { return &v }
