package pipeline

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/waybillhq/waybill/pipeline/failpoint"
)

// retransmit finds the batches that wait for a sink and are neither queued for it nor
// delivered, and publishes them again. It compares no clocks but Postgres's own:
//
// Receipts precede acks. So once every receipt that was stored when the floors were read
// has been settled, a batch below a floor that still waits for the sink was never
// delivered to it. And the queue is in the order of queued_at but for less than the grace
// period. So what was queued before the first message above the floor, less grace, is
// not above the floor either.
func (j *Janitor) retransmit(ctx context.Context) error {
	survey, err := j.store.Survey(ctx)
	if err != nil {
		return err
	}
	j.mu.Lock()
	j.survey = survey
	j.mu.Unlock()
	overdue := 0
	for _, b := range survey.Backlogs {
		if b.Overdue > 0 {
			overdue++
		}
	}
	if overdue == 0 {
		return nil
	}
	f, err := j.queue.readFloors(ctx)
	if err != nil {
		return err
	}
	if err := j.barrier(ctx); err != nil {
		return err
	}
	stale, err := j.watermarks(ctx, survey, f)
	if err != nil {
		return err
	}
	if again, err := j.queue.readFloors(ctx); err != nil || !again.created.Equal(f.created) {
		return errors.Join(err, errors.New("the stream was recreated during the pass"))
	}
	return j.retransmitLanes(ctx, stale)
}

// barrier waits until every receipt that is stored now has been settled. It fails when the
// stream is recreated meanwhile: what its positions meant is gone.
func (j *Janitor) barrier(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, j.cfg.BarrierTimeout)
	defer cancel()
	stream, err := j.queue.js.Stream(ctx, ReceiptsStream)
	if err != nil {
		return fmt.Errorf("stream %s: %w", ReceiptsStream, err)
	}
	first := stream.CachedInfo()
	for {
		info, err := stream.Info(ctx)
		if err != nil {
			return fmt.Errorf("wait for the receipts: %w", err)
		}
		if !info.Created.Equal(first.Created) || info.State.LastSeq < first.State.LastSeq {
			return fmt.Errorf("stream %s was recreated during the pass", ReceiptsStream)
		}
		// A work queue deletes what is acked, and receipts are acked after the commit.
		if info.State.Msgs == 0 || info.State.FirstSeq > first.State.LastSeq {
			return nil
		}
		pause(ctx, 20*time.Millisecond)
	}
}

// laneStale is what may be retransmitted in one lane.
type laneStale struct {
	stale  []staleFor
	budget int64 // bytes
}

// watermarks returns, by lane, before when a batch must have been queued to be stale, for
// the sinks that have overdue batches and room in the queue.
func (j *Janitor) watermarks(ctx context.Context, survey Survey, f *floors) (map[int]*laneStale, error) {
	out := map[int]*laneStale{}
	for _, b := range survey.Backlogs {
		info := f.byName[consumerName(b.Sink, b.Lane)]
		if b.Overdue == 0 || info == nil || f.ahead(info) {
			continue // no readable floor, no watermark
		}
		room := j.room(b, info, f)
		if room <= 0 {
			continue
		}
		mark, err := j.queue.watermark(ctx, b.Lane, info.AckFloor.Stream, survey.Now)
		if err != nil {
			return nil, err
		}
		lane := out[b.Lane]
		if lane == nil {
			lane = &laneStale{budget: room}
			out[b.Lane] = lane
		}
		// The larger room: one that is short of it must not hold the other sink up, and is left
		// out of the next pass.
		lane.budget = max(lane.budget, room)
		lane.stale = append(lane.stale, staleFor{b.Sink, mark.Add(-j.store.Grace())})
	}
	return out, nil
}

// room is how many bytes more may be queued for a (sink, lane), estimated from the number
// of its queued messages and the mean size of what waits.
func (j *Janitor) room(b Backlog, info *jetstream.ConsumerInfo, f *floors) int64 {
	limit := j.cfg.RetransmitBytes
	if most := f.info.Config.MaxBytes; most > 0 {
		limit = min(limit, max(most/int64(4*len(f.byName)), 1))
	}
	queued := int64(info.NumPending) + int64(info.NumAckPending)
	return limit - queued*(b.Bytes/b.Batches)
}

// watermark is queued_at of the lane's first message above the floor, or now when the floor
// has reached the lane's end as the stream's leader knows it.
func (q *Queue) watermark(ctx context.Context, lane int, floor uint64, now time.Time) (time.Time, error) {
	stream, err := q.js.Stream(ctx, EventsStream)
	if err != nil {
		return time.Time{}, fmt.Errorf("stream %s: %w", EventsStream, err)
	}
	for next := floor + 1; ; {
		msg, err := stream.GetMsg(ctx, next, jetstream.WithGetMsgSubject(eventSubject(lane)))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return now, nil
		}
		if err != nil {
			return time.Time{}, fmt.Errorf("read the message above the floor of lane %d: %w", lane, err)
		}
		if batch, err := parseHeaders(msg.Header); err == nil {
			return batch.QueuedAt, nil
		}
		next = msg.Sequence + 1 // a corrupt one says nothing
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

// retransmitLanes works on the lanes, a few at a time. Order within a lane is by batch
// number, the order of acceptance.
func (j *Janitor) retransmitLanes(ctx context.Context, lanes map[int]*laneStale) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	slots := make(chan struct{}, retransmitLanes)
	for lane, what := range lanes {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := j.retransmitLane(ctx, lane, what); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (j *Janitor) retransmitLane(ctx context.Context, lane int, what *laneStale) error {
	found, err := j.store.FindStale(ctx, lane, what.stale, retransmitFind)
	if err != nil {
		return err
	}
	size := retransmitFirstChunk
	for len(found) > 0 && what.budget > 0 && ctx.Err() == nil {
		var chunk []int64
		chunk, found = nextChunk(found, size, min(what.budget, retransmitChunkBytes))
		began := time.Now()
		sent, err := j.retransmitChunk(ctx, chunk, what.stale)
		if err != nil {
			return err
		}
		what.budget -= sent
		size = nextSize(size, time.Since(began), j.store.Grace())
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

// retransmitChunk claims batches and publishes them in the order of their numbers, for as long
// as they may be. It returns the bytes published.
func (j *Janitor) retransmitChunk(ctx context.Context, numbers []int64, stale []staleFor) (sent int64, err error) {
	began := time.Now()
	batches, damaged, err := j.store.ClaimStale(ctx, numbers, stale)
	if err != nil {
		return 0, err
	}
	for _, id := range damaged {
		j.metrics.damaged()
		j.log.Error("a batch lacks some of its events and cannot be retransmitted; it becomes dead letters when it expires", "batch", id.String())
	}
	deadline := began.Add(j.store.Grace() / 2)
	for i := range batches {
		if !time.Now().Before(deadline) {
			return sent, nil // the rest becomes stale again
		}
		c := &batches[i]
		o := outgoing{msg: c.batch.message(c.body), id: c.batch.ID, events: c.batch.count, deadline: deadline}
		failpoint.Hit("janitor/before-publish")
		switch err := failpoint.Err("janitor/after-publish", j.queue.publishOnce(ctx, o)); {
		case isTooLarge(err):
			// Of this batch alone: those behind it must not wait for it.
			j.metrics.unpublishable()
			j.log.Error("a batch is larger than the NATS server's max_payload; raise that to deliver it", "batch", c.batch.ID.String(), "error", err)
		case err != nil:
			return sent, err // unknown or not stored: what is claimed becomes stale again
		default:
			sent += int64(len(c.body))
			j.metrics.retransmitted(c.batch.count)
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
