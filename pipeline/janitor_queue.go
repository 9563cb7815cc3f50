package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/waybillhq/waybill/pipeline/failpoint"
)

// floors are the positions of the sinks' consumers, read before anything that is compared
// with them.
type floors struct {
	created time.Time                          // of the stream: positions of another mean nothing
	byName  map[string]*jetstream.ConsumerInfo // every consumer that could be read
	info    *jetstream.StreamInfo              // read after the consumers
}

// readFloors lists the consumers of EVENTS and then looks at the stream.
func (q *Queue) readFloors(ctx context.Context) (*floors, error) {
	stream, err := q.js.Stream(ctx, EventsStream)
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", EventsStream, err)
	}
	f := &floors{created: stream.CachedInfo().Created, byName: map[string]*jetstream.ConsumerInfo{}}
	list := stream.ListConsumers(ctx)
	for info := range list.Info() {
		f.byName[info.Name] = info
	}
	if err := list.Err(); err != nil {
		return nil, fmt.Errorf("list the consumers of %s: %w", EventsStream, err)
	}
	if f.info, err = stream.Info(ctx); err != nil {
		return nil, fmt.Errorf("stream %s: %w", EventsStream, err)
	}
	if !f.info.Created.Equal(f.created) {
		return nil, fmt.Errorf("stream %s was recreated meanwhile", EventsStream)
	}
	return f, nil
}

// QueuedLane is the queue of one sink in one lane.
type QueuedLane struct {
	// Floor is the stream's sequence up to which all is acked.
	Floor uint64
	// Batches are above it: delivered and not acked, or not delivered yet.
	Batches uint64
}

// QueuedFor returns the queues of all sinks, for people to look at.
func QueuedFor(ctx context.Context, q *Queue) (map[SinkLane]QueuedLane, error) {
	f, err := q.readFloors(ctx)
	if err != nil {
		return nil, err
	}
	queued := map[SinkLane]QueuedLane{}
	for name, info := range f.byName {
		sink := info.Config.Metadata[sinkMetadata]
		lane, err := strconv.Atoi(strings.TrimPrefix(name, sink+"-"))
		if sink == "" || err != nil {
			continue // not one of ours
		}
		queued[SinkLane{sink, lane}] = QueuedLane{Floor: info.AckFloor.Stream, Batches: info.NumPending + uint64(info.NumAckPending)}
	}
	return queued, nil
}

// ahead reports a consumer whose position is beyond the stream's end: the stream lost its
// newest part, and the consumer would skip what comes next.
func (f *floors) ahead(info *jetstream.ConsumerInfo) bool {
	last := f.info.State.LastSeq
	return info.Delivered.Stream > last || info.AckFloor.Stream > last
}

// acked returns the first sequence that a sink may still need, of a stream whose state was read
// before the floors. A floor that could not be read, or means nothing, makes it false.
func (f *floors) acked(sinks []string, lanes int, state jetstream.StreamState) (keep uint64, ok bool) {
	keep = state.LastSeq + 1
	for _, sink := range sinks {
		for lane := range lanes {
			info := f.byName[consumerName(sink, lane)]
			if info == nil || f.ahead(info) {
				return 0, false
			}
			if info.NumPending > 0 || info.NumAckPending > 0 {
				keep = min(keep, info.AckFloor.Stream+1)
			}
		}
	}
	return keep, true
}

// lostSince reports that positions mean nothing any more: that the stream was made anew, or that
// it or a consumer stands before where it stood.
func (f *floors) lostSince(again *floors) bool {
	if !again.created.Equal(f.created) || again.info.State.LastSeq < f.info.State.LastSeq {
		return true
	}
	for name, before := range f.byName {
		// A cluster may leave one out of its list for a moment: that says nothing.
		if now := again.byName[name]; now != nil && (!now.Created.Equal(before.Created) || now.AckFloor.Stream < before.AckFloor.Stream) {
			return true
		}
	}
	return false
}

// keeper creates what is missing of the queue and deletes what is no longer wanted.
type keeper struct {
	cfg   QueueConfig
	store *Store
	queue *Queue
	log   *slog.Logger
	again bool // it looks after a pipeline that runs
}

// EnsureQueue creates what is missing of streams, buckets and consumers of the pipeline
// that store is of. It may be run at any time and by several at once.
func EnsureQueue(ctx context.Context, cfg QueueConfig, store *Store, queue *Queue, log *slog.Logger) error {
	k := keeper{cfg: cfg, store: store, queue: queue, log: log}
	f, err := k.streams(ctx)
	if err != nil {
		return err
	}
	_, err = k.consumers(ctx, f)
	return err
}

// upkeep keeps the queue in order. It sheds first: a queue that is full stops everybody, and
// the rest may take a while.
func (j *Janitor) upkeep(ctx context.Context) error {
	k := keeper{cfg: j.cfg.Queue, store: j.store, queue: j.queue, log: j.log, again: true}
	f, err := k.streams(ctx)
	if err != nil {
		return err
	}
	j.sawStream(f.info)
	if err := j.shed(ctx, f.info); err != nil {
		return err
	}
	if err := j.reviveReceipts(ctx); err != nil {
		return err
	}
	sinks, err := k.consumers(ctx, f)
	j.sawSinks(sinks)
	return err
}

// streams creates missing streams and buckets and returns the positions it finds.
func (k keeper) streams(ctx context.Context) (*floors, error) {
	if err := k.queue.ensureAll(ctx, k.cfg, k.store.Lanes(), k.again); err != nil {
		return nil, err
	}
	return k.queue.readFloors(ctx)
}

// consumers creates the missing ones and deletes those of removed sinks. It returns the sinks.
func (k keeper) consumers(ctx context.Context, f *floors) ([]string, error) {
	sinks, err := k.store.Sinks(ctx)
	if err != nil {
		return nil, err
	}
	if err := k.ensureConsumers(ctx, sinks, f); err != nil {
		return sinks, err
	}
	return sinks, k.removeConsumers(ctx, sinks, f)
}

func (k keeper) ensureConsumers(ctx context.Context, sinks []string, f *floors) error {
	var survey *Survey
	for _, sink := range sinks {
		for lane := range k.store.Lanes() {
			info := f.byName[consumerName(sink, lane)]
			if info != nil && !f.ahead(info) {
				continue
			}
			if survey == nil {
				s, err := k.store.Survey(ctx)
				if err != nil {
					return err
				}
				survey = &s
			}
			if err := k.createConsumer(ctx, sink, lane, info, survey, f); err != nil {
				return err
			}
		}
	}
	return nil
}

// createConsumer makes the work queue of (sink, lane), beginning with the oldest batch that
// waits for the sink. old is a consumer that stands beyond the stream's end, or nil.
func (k keeper) createConsumer(ctx context.Context, sink string, lane int, old *jetstream.ConsumerInfo, survey *Survey, f *floors) error {
	name := consumerName(sink, lane)
	stream, err := k.queue.js.Stream(ctx, EventsStream)
	if err != nil {
		return fmt.Errorf("stream %s: %w", EventsStream, err)
	}
	start, err := consumerStart(sink, lane, survey, f.info.State, k.store.Grace(), reader(ctx, stream, eventSubject(lane)))
	if err != nil {
		return err
	}
	if old != nil {
		// Another janitor may have seen the same and replaced it meanwhile.
		now, err := k.queue.js.Consumer(ctx, EventsStream, name)
		if err == nil && !now.CachedInfo().Created.Equal(old.Created) {
			return nil
		}
		k.log.Warn("consumer stands beyond the end of the stream and is made anew", "consumer", name,
			"delivered", old.Delivered.Stream, "last", f.info.State.LastSeq)
		if err := k.queue.js.DeleteConsumer(ctx, EventsStream, name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			return fmt.Errorf("delete consumer %s: %w", name, err)
		}
	}
	failpoint.Hit("janitor/before-create-consumer")
	_, err = k.queue.js.CreateConsumer(ctx, EventsStream, sinkConsumerConfig(k.cfg, sink, lane, start))
	err = failpoint.Err("janitor/after-create-consumer", err)
	if errors.Is(err, jetstream.ErrConsumerExists) {
		return nil // another janitor was faster
	}
	if err != nil {
		return fmt.Errorf("create consumer %s: %w", name, err)
	}
	k.log.Info("consumer created", "consumer", name, "start", start)
	return nil
}

// consumerStart returns where the work queue of (sink, lane) begins: with the oldest batch that
// waits for the sink, or after the stream's end when none was queued yet. state was read before
// the survey; next returns the lane's first message at or after a sequence.
func consumerStart(sink string, lane int, survey *Survey, state jetstream.StreamState, grace time.Duration, next func(uint64) (*jetstream.RawStreamMsg, error)) (uint64, error) {
	for _, b := range survey.Backlogs {
		if b.Sink == sink && b.Lane == lane && !b.OldestQueued.IsZero() {
			return firstQueuedAt(state, b.OldestQueued.Add(-grace), next)
		}
	}
	return state.LastSeq + 1, nil
}

// removeConsumers deletes the work queues of sinks that are no longer in the table.
func (k keeper) removeConsumers(ctx context.Context, sinks []string, f *floors) error {
	required := map[string]bool{}
	for _, s := range sinks {
		required[s] = true
	}
	for name, info := range f.byName {
		sink := info.Config.Metadata[sinkMetadata]
		if sink == "" || required[sink] {
			continue
		}
		if err := k.queue.js.DeleteConsumer(ctx, EventsStream, name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			return fmt.Errorf("delete consumer %s of a removed sink: %w", name, err)
		}
		k.log.Info("consumer of a removed sink deleted", "consumer", name)
	}
	return nil
}

// firstFrom returns the first message of a subject at or after a sequence.
func (q *Queue) firstFrom(ctx context.Context, subject string, seq uint64) (*jetstream.RawStreamMsg, error) {
	stream, err := q.js.Stream(ctx, EventsStream)
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", EventsStream, err)
	}
	return reader(ctx, stream, subject)(seq)
}

// reader returns a function that returns the first message of a subject at or after a sequence,
// or jetstream.ErrMsgNotFound.
func reader(ctx context.Context, stream jetstream.Stream, subject string) func(uint64) (*jetstream.RawStreamMsg, error) {
	return func(seq uint64) (*jetstream.RawStreamMsg, error) {
		msg, err := stream.GetMsg(ctx, seq, jetstream.WithGetMsgSubject(subject))
		if err != nil {
			return nil, fmt.Errorf("read the first message of %s from %d on: %w", subject, seq, err)
		}
		return msg, nil
	}
}

// firstQueuedAt returns the sequence of the first message that was queued at or after t by
// Postgres's clock, or the one after the stream's last. Messages are in the order of queued_at
// but for the grace period, which the caller takes off t. next returns the first message, of
// those that are looked at, at or after a sequence.
func firstQueuedAt(state jetstream.StreamState, t time.Time, next func(seq uint64) (*jetstream.RawStreamMsg, error)) (uint64, error) {
	low, high := max(state.FirstSeq, 1), state.LastSeq+1 // the answer is in [low, high]
	for low < high {
		middle := low + (high-low)/2
		msg, err := next(middle)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			high = middle
			continue
		}
		if err != nil {
			return 0, err
		}
		batch, err := parseHeaders(msg.Header)
		switch {
		case err != nil || !batch.QueuedAt.Before(t): // corrupt: rather too early than too late
			high = middle
		default:
			low = msg.Sequence + 1
		}
	}
	return low, nil
}

// trim deletes what every sink has and the replay window no longer holds. A floor that
// cannot be read forbids it.
func (j *Janitor) trim(ctx context.Context) error {
	stream, err := j.queue.js.Stream(ctx, EventsStream)
	if err != nil {
		return fmt.Errorf("stream %s: %w", EventsStream, err)
	}
	state := stream.CachedInfo().State // before the floors: what is published later stays
	sinks, err := j.store.Sinks(ctx)
	if err != nil {
		return err
	}
	f, err := j.queue.readFloors(ctx)
	if err != nil {
		return err
	}
	if !f.created.Equal(stream.CachedInfo().Created) {
		return nil
	}
	keep, ok := f.acked(sinks, j.store.Lanes(), state)
	if !ok {
		return nil
	}
	survey, err := j.store.Survey(ctx)
	if err != nil {
		return err
	}
	// A consumer hears of a new message a moment after the stream has it, and until then says
	// that nothing is pending: what is that young stays in any case.
	window, err := firstQueuedAt(state, survey.Now.Add(-max(j.cfg.ReplayWindow, j.store.Grace())), reader(ctx, stream, "events.*"))
	if err != nil {
		return err
	}
	keep = min(keep, window)
	if keep <= state.FirstSeq {
		return nil
	}
	failpoint.Hit("janitor/before-trim")
	if err := failpoint.Err("janitor/after-trim", stream.Purge(ctx, jetstream.WithPurgeSequence(keep))); err != nil {
		return fmt.Errorf("trim %s: %w", EventsStream, err)
	}
	return nil
}

// shed deletes the oldest batches when the queue is nearly full, un-acked ones too, so that
// a sink that is down cannot fill it for the others: Postgres has them all.
func (j *Janitor) shed(ctx context.Context, info *jetstream.StreamInfo) error {
	limit := float64(info.Config.MaxBytes)
	used := float64(info.State.Bytes)
	if limit <= 0 || used < j.cfg.ShedAbove*limit || info.State.Msgs == 0 {
		return nil
	}
	share := (used - j.cfg.ShedTo*limit) / used
	n := max(uint64(share*float64(info.State.LastSeq-info.State.FirstSeq+1)), 1)
	stream, err := j.queue.js.Stream(ctx, EventsStream)
	if err != nil {
		return fmt.Errorf("stream %s: %w", EventsStream, err)
	}
	if !stream.CachedInfo().Created.Equal(info.Created) {
		return nil
	}
	failpoint.Hit("janitor/before-shed")
	if err := failpoint.Err("janitor/after-shed", stream.Purge(ctx, jetstream.WithPurgeSequence(info.State.FirstSeq+n))); err != nil {
		return fmt.Errorf("shed from %s: %w", EventsStream, err)
	}
	j.metrics.shedBatches(int64(n))
	j.log.Warn("the queue is nearly full: the oldest batches were shed and will be retransmitted to the sinks that lack them",
		"batches", n, "bytes", info.State.Bytes, "max_bytes", info.Config.MaxBytes)
	return nil
}
