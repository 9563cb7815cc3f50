package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/waybillhq/waybill/pipeline/failpoint"
)

// staleStore is what a pass needs of Postgres, whose clock alone it goes by. Each call is one
// transaction; after an error of ClaimStale its outcome is unknown.
type staleStore interface {
	Grace() time.Duration
	FindStale(ctx context.Context, lane int, stale []staleFor, limit int) ([]staleBatch, error)
	ClaimStale(ctx context.Context, numbers []int64, stale []staleFor) ([]claimed, []damagedBatch, error)
}

// staleQueue is what a pass needs of JetStream.
type staleQueue interface {
	readFloors(ctx context.Context) (*floors, error)
	// receipts describes the stream of the receipts that were not settled yet.
	receipts(ctx context.Context) (*jetstream.StreamInfo, error)
	// firstFrom returns the first message of a subject of EVENTS at or after a sequence, or
	// jetstream.ErrMsgNotFound, as the stream's leader knows it.
	firstFrom(ctx context.Context, subject string, seq uint64) (*jetstream.RawStreamMsg, error)
	// publishOnce stores a message; after an error the outcome is unknown.
	publishOnce(ctx context.Context, o outgoing) error
}

var (
	_ staleStore = (*Store)(nil)
	_ staleQueue = (*Queue)(nil)
)

// retransmitter makes passes that find the batches that wait for a sink and are neither queued
// for it nor delivered, and publish them again. It compares no clocks but Postgres's own:
//
// Receipts precede acks. So once every receipt that was stored when the floors and what is above
// them were read has been settled, a batch below a floor that still waits for the sink was never
// delivered to it. And the queue is in the order of queued_at but for less than the grace
// period. So what was queued before the first message above the floor, less grace, is
// not above the floor either.
//
// The survey walks over everything that waits. So that a large backlog does not cost the other
// sinks their Postgres, the pause after a pass that found nothing stale is in proportion to it.
type retransmitter struct {
	cfg     JanitorConfig
	store   staleStore
	queue   staleQueue
	metrics *janitorMetrics
	log     *slog.Logger
}

// retransmit makes one pass and says how long the pause after it is to be.
func (j *Janitor) retransmit(ctx context.Context) (rest time.Duration, err error) {
	began := time.Now()
	survey, err := j.store.Survey(ctx)
	if err != nil {
		return j.cfg.RetransmitEvery, err
	}
	surveyed := time.Since(began)
	rest = max(j.cfg.RetransmitEvery, surveyShare*surveyed)
	j.sawPending(survey)
	saved := j.store.SaveWaiting(ctx, survey.Waiting())
	r := retransmitter{cfg: j.cfg, store: j.store, queue: j.queue, metrics: j.metrics, log: j.log}
	stale, err := r.pass(ctx, survey)
	if stale {
		// There may be more than there was room for; room comes as the sink takes some.
		rest = max(j.cfg.RetransmitEvery/4, 2*surveyed)
	}
	return rest, errors.Join(err, saved)
}

// pass retransmits what was stale at the time of the survey, or some of it. It reports whether
// there was any, for which there may not have been room.
func (r *retransmitter) pass(ctx context.Context, survey Survey) (stale bool, err error) {
	if !slices.ContainsFunc(survey.Backlogs, func(b Backlog) bool { return b.Overdue > 0 }) {
		return false, nil
	}
	f, err := r.queue.readFloors(ctx)
	if err != nil {
		return false, err
	}
	// Before the barrier: what a sink has acked meanwhile may be trimmed before it is looked for,
	// and its receipt must then be among those that the barrier waits for.
	lanes, short, err := r.watermarks(ctx, survey, f)
	if err != nil || len(lanes) == 0 {
		return short, err
	}
	if err := r.barrier(ctx); err != nil {
		return true, err
	}
	again, err := r.queue.readFloors(ctx)
	if err != nil {
		return true, err
	}
	if f.lostSince(again) {
		return true, errors.New("the stream was recreated, or lost its newest part, during the pass")
	}
	return true, r.lanes(ctx, lanes)
}

// receipts describes the stream of receipts.
func (q *Queue) receipts(ctx context.Context) (*jetstream.StreamInfo, error) {
	stream, err := q.js.Stream(ctx, ReceiptsStream)
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", ReceiptsStream, err)
	}
	return stream.CachedInfo(), nil
}

// surveyShare is how much longer than a survey the pause after it is: two janitors use at most
// a tenth of one of Postgres's cores for it.
const surveyShare = 20

// barrier waits until every receipt that is stored now has been settled. It fails when the
// stream is recreated meanwhile: what its positions meant is gone.
func (r *retransmitter) barrier(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.BarrierTimeout)
	defer cancel()
	first, err := r.queue.receipts(ctx)
	if err != nil {
		return err
	}
	for now := first; ; {
		if !now.Created.Equal(first.Created) || now.State.LastSeq < first.State.LastSeq {
			return fmt.Errorf("stream %s was recreated during the pass", ReceiptsStream)
		}
		// A work queue deletes what is acked, and receipts are acked after the commit.
		if now.State.Msgs == 0 || now.State.FirstSeq > first.State.LastSeq {
			return nil
		}
		pause(ctx, 20*time.Millisecond)
		if now, err = r.queue.receipts(ctx); err != nil {
			return fmt.Errorf("wait for the receipts: %w", err)
		}
	}
}

// laneStale is what may be retransmitted in one lane.
type laneStale struct {
	stale  []staleFor
	budget int64 // bytes
}

// watermarks returns, by lane, before when a batch must have been queued to be stale, for
// the sinks that have stale batches and room in the queue. short says that for some there is
// no room.
func (r *retransmitter) watermarks(ctx context.Context, survey Survey, f *floors) (out map[int]*laneStale, short bool, err error) {
	out = map[int]*laneStale{}
	for _, b := range survey.Backlogs {
		info := f.byName[consumerName(b.Sink, b.Lane)]
		if b.Overdue == 0 || info == nil || f.ahead(info) {
			continue // no readable floor, no watermark
		}
		mark, err := watermark(info.AckFloor.Stream, survey.Now, func(seq uint64) (*jetstream.RawStreamMsg, error) {
			return r.queue.firstFrom(ctx, eventSubject(b.Lane), seq)
		})
		if err != nil {
			return nil, false, err
		}
		before := mark.Add(-r.store.Grace())
		if mark.After(survey.Now.Add(r.store.Grace())) {
			// Postgres's clock has jumped back, and what came since would all be taken for
			// stale, in every pass. It is behind this message, which must go first anyway.
			continue
		}
		if !b.stale(before) {
			continue // all of it is queued: a walk over it would find nothing
		}
		room := r.room(b, info, f)
		if room <= 0 {
			short = true
			continue
		}
		lane := out[b.Lane]
		if lane == nil {
			lane = &laneStale{budget: room}
			out[b.Lane] = lane
		}
		// The larger room: one that is short of it must not hold the other sink up, and is left
		// out of the next pass.
		lane.budget = max(lane.budget, room)
		lane.stale = append(lane.stale, staleFor{b.Sink, before})
	}
	return out, short, nil
}

// room is how many bytes more may be queued for a (sink, lane), estimated from the number
// of its queued messages and the mean size of what waits.
func (r *retransmitter) room(b Backlog, info *jetstream.ConsumerInfo, f *floors) int64 {
	limit := r.cfg.RetransmitBytes
	if most := f.info.Config.MaxBytes; most > 0 {
		limit = min(limit, max(most/int64(4*len(f.byName)), 1))
	}
	queued := int64(info.NumPending) + int64(info.NumAckPending)
	return limit - queued*(b.Bytes/b.Batches)
}

// watermark is queued_at of the first message above the floor, or now when the floor has
// reached the lane's end. next returns the lane's first message at or after a sequence.
func watermark(floor uint64, now time.Time, next func(seq uint64) (*jetstream.RawStreamMsg, error)) (time.Time, error) {
	for seq := floor + 1; ; {
		msg, err := next(seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return now, nil
		}
		if err != nil {
			return time.Time{}, fmt.Errorf("the message above the floor: %w", err)
		}
		if batch, err := parseHeaders(msg.Header); err == nil {
			return batch.QueuedAt, nil
		}
		seq = msg.Sequence + 1 // a corrupt one says nothing
	}
}

const (
	// retransmitFind is how many stale batches of a lane one walk looks for.
	retransmitFind = 20_000
	// What is claimed must be published within half the grace period, or it waits for another
	// pass. So the first chunk of a lane is small, and the next ones as large as the publishing
	// is quick.
	retransmitChunkBytes = 4 << 20
	retransmitFirstChunk = 32
	retransmitMostChunk  = 1024
	// retransmitLanes is how many lanes are worked on at once.
	retransmitLanes = 4
)

// lanes works on the lanes, a few at a time. Order within a lane is by batch
// number, the order of acceptance.
func (r *retransmitter) lanes(ctx context.Context, lanes map[int]*laneStale) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	slots := make(chan struct{}, retransmitLanes)
	for lane, what := range lanes {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := r.lane(ctx, lane, what); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (r *retransmitter) lane(ctx context.Context, lane int, what *laneStale) error {
	found, err := r.store.FindStale(ctx, lane, what.stale, retransmitFind)
	if err != nil {
		return err
	}
	size := retransmitFirstChunk
	for len(found) > 0 && what.budget > 0 && ctx.Err() == nil {
		var chunk []int64
		chunk, found = nextChunk(found, size, min(what.budget, retransmitChunkBytes))
		began := time.Now()
		sent, err := r.chunk(ctx, chunk, what.stale)
		if err != nil {
			return err
		}
		what.budget -= sent
		size = nextSize(size, time.Since(began), r.store.Grace())
	}
	return nil
}

// nextSize is how many batches the next chunk may have, after one of size took so long.
func nextSize(size int, took, grace time.Duration) int {
	switch {
	case took < grace/16:
		return min(2*size, retransmitMostChunk)
	case took > grace/4:
		return max(size/2, 1)
	default:
		return size
	}
}

// nextChunk takes batches off the list: one at least, and up to the given number and bytes.
func nextChunk(found []staleBatch, most int, bytes int64) (chunk []int64, rest []staleBatch) {
	for len(found) > 0 && len(chunk) < most && (len(chunk) == 0 || found[0].bytes <= bytes) {
		bytes -= found[0].bytes
		chunk = append(chunk, found[0].number)
		found = found[1:]
	}
	return chunk, found
}

// chunk claims batches and publishes them in the order of their numbers, for as long
// as they may be. It returns the bytes published.
func (r *retransmitter) chunk(ctx context.Context, numbers []int64, stale []staleFor) (sent int64, err error) {
	began := time.Now()
	batches, damaged, err := r.store.ClaimStale(ctx, numbers, stale)
	if err != nil {
		return 0, err
	}
	for _, d := range damaged {
		r.metrics.damaged()
		r.metrics.died(d.letters)
		r.log.Error("events of a batch are damaged in Postgres; they are dead letters now, and its other events are retransmitted one by one", "batch", d.id.String())
	}
	deadline := began.Add(r.store.Grace() / 2)
	for i := range batches {
		if !time.Now().Before(deadline) {
			return sent, nil // the rest becomes stale again
		}
		c := &batches[i]
		o := outgoing{msg: c.batch.message(c.body), id: c.batch.ID, events: c.batch.count, deadline: deadline}
		o.hop = r.cfg.Tracing.republishing(&c.batch, c.body, o.msg)
		failpoint.Hit("janitor/before-publish")
		start := time.Now()
		err := failpoint.Err("janitor/after-publish", r.queue.publishOnce(ctx, o))
		r.metrics.published(time.Since(start), err)
		o.hop.stored(err)
		switch {
		case isTooLarge(err):
			// Of this batch alone: those behind it must not wait for it.
			r.metrics.unpublishable()
			r.log.Error("a batch is larger than the NATS server's max_payload; raise that to deliver it", "batch", c.batch.ID.String(), o.hop.trace(), "error", err)
		case err != nil:
			return sent, err // unknown or not stored: what is claimed becomes stale again
		default:
			sent += int64(len(c.body))
			r.metrics.retransmitted(c.batch.count)
		}
	}
	return sent, nil
}

// tooLargeCode is JetStream's error for a message beyond max_payload or the stream's limit.
const tooLargeCode = 10054

func isTooLarge(err error) bool {
	var api *jetstream.APIError
	return errors.Is(err, nats.ErrMaxPayload) || errors.As(err, &api) && api.ErrorCode == tooLargeCode
}
