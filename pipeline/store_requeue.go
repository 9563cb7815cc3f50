package pipeline

import (
	"context"
	_ "embed"
	"fmt"
	"time"

	"github.com/waybillhq/waybill/pipeline/failpoint"
)

//go:embed sql/requeue.sql
var requeueSQL string

// Requeued is what one step of a requeue did.
type Requeued struct {
	Letters int // that are on their way again
	// Skipped were not requeued: somebody else did at the same moment, or a receipt came, or
	// their sink is no more.
	Skipped int
}

// Requeue looks at one page and puts the dead letters in it that match, up to limit, back into
// the queue, in one transaction. Each keeps its event id and seqnum, waits for its own sink
// only, for ttl (0: for ever), and stays a dead letter until the sink's receipt. Those that
// are on their way, or were delivered late, are passed over. After an error that leaves open
// whether the transaction was committed the walk has not moved on, and repeating the step
// requeues nothing twice.
func (w *LetterWalk) Requeue(ctx context.Context, limit int, ttl time.Duration) (Requeued, error) {
	filter := w.filter
	filter.States = []LetterState{LetterDead}
	found, advance, err := w.next(ctx, filter, limit)
	if err != nil {
		return Requeued{}, err
	}
	n := 0
	if len(found) > 0 {
		if n, err = w.store.requeue(ctx, found, ttl); err != nil {
			return Requeued{}, err
		}
	}
	advance()
	return Requeued{Letters: n, Skipped: len(found) - n}, nil
}

func (s *Store) requeue(ctx context.Context, found []foundLetter, ttl time.Duration) (int, error) {
	var micros *int64
	if ttl > 0 {
		us := ttl.Microseconds()
		micros = &us
	}
	failed, positions, tokens, sinks := keyArgs(found)
	lanes := make([]int16, len(found))
	for i, l := range found {
		lanes[i] = int16(s.laneOfLetter(l))
	}
	failpoint.Hit("waybill/before-requeue")
	tag, err := s.exec(ctx, requeueSQL, failed, positions, tokens, sinks, lanes, micros)
	err = failpoint.Err("waybill/after-requeue", err)
	if isNumberTaken(err) {
		if _, err := s.pool.Exec(ctx, repairNumbersSQL); err != nil {
			return 0, fmt.Errorf("requeue: set the batch numbers past the stored ones: %w", err)
		}
		tag, err = s.exec(ctx, requeueSQL, failed, positions, tokens, sinks, lanes, micros)
	}
	if err != nil {
		return 0, fmt.Errorf("requeue: %w", err)
	}
	return int(tag.RowsAffected()), nil
}

// laneOfLetter is the lane that the event was in, where a sink that keeps a log per lane finds
// it if it has it after all; its key's lane of today if that one is no more.
func (s *Store) laneOfLetter(l foundLetter) int {
	if l.lane < s.lanes {
		return l.lane
	}
	return LaneOf(l.source, l.typ, s.lanes)
}
