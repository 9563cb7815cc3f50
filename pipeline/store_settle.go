package pipeline

import (
	"cmp"
	"context"
	_ "embed"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/pipeline/failpoint"
)

var (
	//go:embed sql/settle_lock.sql
	settleLockSQL string
	//go:embed sql/settle_waiting.sql
	settleWaitingSQL string
	//go:embed sql/settle_refused.sql
	settleRefusedSQL string
	//go:embed sql/settle_requeued.sql
	settleRequeuedSQL string
	//go:embed sql/settle_late.sql
	settleLateSQL string
	//go:embed sql/settle_late_requeued.sql
	settleLateRequeuedSQL string
	//go:embed sql/delete_batches.sql
	deleteBatchesSQL string
	//go:embed sql/delete_events.sql
	deleteEventsSQL string
)

// Settled counts what a Settle did.
type Settled struct {
	Batches     int              // that wait for nobody any more, and were deleted
	Events      int              // of those batches
	DeadLetters map[SinkCode]int // events refused for good
	Late        int              // dead letters that turned out to be delivered
}

// Settle applies receipts in one transaction: each sink is taken off the batches it has a
// receipt for, where number and token match; events it refused are copied into
// dead_letters; a batch that then waits for nobody is deleted with its events. Applying a
// receipt again changes nothing. Two at once cannot deadlock: batches are locked in order.
func (s *Store) Settle(ctx context.Context, receipts []Receipt) (done Settled, err error) {
	defer s.metrics.time("settle")(&err)
	work := gather(receipts)
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		done = Settled{DeadLetters: map[SinkCode]int{}}
		failpoint.Hit("janitor/before-lock")
		if err := work.lock(ctx, tx); err != nil {
			return err
		}
		failpoint.Hit("janitor/after-lock")
		return failpoint.Err("janitor/before-commit", work.apply(ctx, tx, &done))
	})
	err = failpoint.Err("janitor/after-commit", err)
	if err != nil {
		return Settled{}, fmt.Errorf("settle %d batches: %w", len(work.claims), err)
	}
	return done, nil
}

// claim is what receipts say of one batch.
type claim struct {
	id    BatchID
	sinks map[string]map[int]Refusal // by sink: refused events by index

	// Filled in from the locked row; found is false for a batch that is gone.
	found    bool
	waiting  []string
	events   int
	requeued bool
}

type settlement struct {
	claims []*claim // in batch order
	byID   map[BatchID]*claim
}

// gather brings together what receipts say of each batch. A repeated receipt of one sink
// adds nothing: the first word counts.
func gather(receipts []Receipt) *settlement {
	w := &settlement{byID: map[BatchID]*claim{}}
	for _, r := range receipts {
		for _, b := range r.Batches {
			c := w.byID[b.ID]
			if c == nil {
				c = &claim{id: b.ID, sinks: map[string]map[int]Refusal{}}
				w.byID[b.ID] = c
				w.claims = append(w.claims, c)
			}
			if _, repeated := c.sinks[r.Sink]; repeated {
				continue
			}
			refused := make(map[int]Refusal, len(b.Refused))
			for _, f := range b.Refused {
				refused[f.Index] = f
			}
			c.sinks[r.Sink] = refused
		}
	}
	slices.SortFunc(w.claims, func(a, b *claim) int {
		return cmp.Or(cmp.Compare(a.id.Number, b.id.Number), cmp.Compare(a.id.Token, b.id.Token))
	})
	return w
}

func (w *settlement) lock(ctx context.Context, tx pgx.Tx) error {
	numbers := make([]int64, len(w.claims))
	for i, c := range w.claims {
		numbers[i] = c.id.Number
	}
	rows, err := tx.Query(ctx, settleLockSQL, numbers)
	if err != nil {
		return fmt.Errorf("lock the batches: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var number, token int64
		var events int16
		var waiting []string
		var requeued bool
		if err := rows.Scan(&number, &token, &waiting, &events, &requeued); err != nil {
			return fmt.Errorf("lock the batches: %w", err)
		}
		c := w.byID[BatchID{Number: number, Token: uint64(token)}]
		if c == nil {
			continue // another batch of that number
		}
		c.found, c.waiting, c.events, c.requeued = true, waiting, int(events), requeued
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("lock the batches: %w", err)
	}
	return nil
}

// settleRows are the parameters of the statements of a settlement.
type settleRows struct {
	refusedPositions                           []int64
	refusedSinks, refusedCodes, refusedReasons []string

	requeuedBatches, requeuedTokens []int64
	requeuedSinks                   []string

	lateBatches, lateTokens []int64
	lateSinks, lateRefused  []string // the latter as the texts of arrays of indexes

	waitingBatches   []int64
	waitingRemaining []string

	settled     []int64
	first, past []int64 // ranges of positions
}

// sort decides what becomes of each claim.
func (w *settlement) sort(done *Settled) *settleRows {
	r := &settleRows{}
	for _, c := range w.claims {
		if !c.found {
			r.addLate(c)
			continue
		}
		remaining := c.waiting[:0:0]
		taken := 0
		for _, sink := range c.waiting {
			refused, ok := c.sinks[sink]
			if !ok {
				remaining = append(remaining, sink)
				continue
			}
			taken++
			r.addTaken(c, sink, refused, done)
		}
		switch {
		case len(remaining) == 0:
			r.settled = append(r.settled, c.id.Number)
			r.addRange(c.id.Number)
			done.Batches++
			done.Events += c.events
		case taken > 0:
			r.waitingBatches = append(r.waitingBatches, c.id.Number)
			r.waitingRemaining = append(r.waitingRemaining, strings.Join(remaining, ","))
		}
	}
	return r
}

// waiting groups the batches by the sinks they still wait for, of which there are few kinds.
func (r *settleRows) waiting() map[string][]int64 {
	by := map[string][]int64{}
	for i, batch := range r.waitingBatches {
		by[r.waitingRemaining[i]] = append(by[r.waitingRemaining[i]], batch)
	}
	return by
}

// addTaken notes what a sink that is taken off a batch refused, and the dead letter that a
// requeued event leaves behind on delivery.
func (r *settleRows) addTaken(c *claim, sink string, refused map[int]Refusal, done *Settled) {
	count := 0
	for index := range c.events {
		f, ok := refused[index]
		if !ok {
			continue
		}
		count++
		done.DeadLetters[SinkCode{sink, f.Code}]++
		r.refusedPositions = append(r.refusedPositions, Position(c.id.Number, index))
		r.refusedSinks = append(r.refusedSinks, sink)
		r.refusedCodes = append(r.refusedCodes, f.Code)
		r.refusedReasons = append(r.refusedReasons, f.Reason)
	}
	if count > 0 {
		return
	}
	if c.requeued {
		r.requeuedBatches = append(r.requeuedBatches, c.id.Number)
		r.requeuedTokens = append(r.requeuedTokens, int64(c.id.Token))
		r.requeuedSinks = append(r.requeuedSinks, sink)
	}
}

func (r *settleRows) addLate(c *claim) {
	for _, sink := range slices.Sorted(maps.Keys(c.sinks)) { // one order of locks
		r.lateBatches = append(r.lateBatches, c.id.Number)
		r.lateTokens = append(r.lateTokens, int64(c.id.Token))
		r.lateSinks = append(r.lateSinks, sink)
		r.lateRefused = append(r.lateRefused, arrayText(c.sinks[sink]))
	}
}

// arrayText is what Postgres reads as the array of the keys.
func arrayText(refused map[int]Refusal) string {
	text := []byte{'{'}
	for index := range refused {
		if len(text) > 1 {
			text = append(text, ',')
		}
		text = strconv.AppendInt(text, int64(index), 10)
	}
	return string(append(text, '}'))
}

// addRange adds a batch's positions to the last range when they follow it: neighbours
// mostly settle together.
func (r *settleRows) addRange(batch int64) {
	if n := len(r.past); n > 0 && r.past[n-1] == Position(batch, 0) {
		r.past[n-1] = Position(batch+1, 0)
		return
	}
	r.first = append(r.first, Position(batch, 0))
	r.past = append(r.past, Position(batch+1, 0))
}

// apply runs the statements that there is work for, in one round trip but for late receipts. Dead
// letters come before the rows they are copied from are deleted.
func (w *settlement) apply(ctx context.Context, tx pgx.Tx, done *Settled) error {
	r := w.sort(done)
	if len(r.lateBatches) > 0 {
		for _, sql := range []string{settleLateSQL, settleLateRequeuedSQL} {
			tag, err := tx.Exec(ctx, sql, planAnew, r.lateBatches, r.lateTokens, r.lateSinks, r.lateRefused)
			if err != nil {
				return fmt.Errorf("apply late receipts: %w", err)
			}
			done.Late += int(tag.RowsAffected())
		}
	}
	b := &pgx.Batch{}
	queue := func(rows int, sql string, args ...any) {
		if rows > 0 {
			b.Queue(sql, args...)
		}
	}
	queue(len(r.refusedPositions), settleRefusedSQL, r.refusedPositions, r.refusedSinks, r.refusedCodes, r.refusedReasons)
	queue(len(r.requeuedBatches), settleRequeuedSQL, r.requeuedBatches, r.requeuedTokens, r.requeuedSinks)
	for remaining, batches := range r.waiting() {
		queue(len(batches), settleWaitingSQL, batches, strings.Split(remaining, ","))
	}
	queue(len(r.settled), deleteBatchesSQL, r.settled)
	queue(len(r.first), deleteEventsSQL, r.first, r.past)
	if b.Len() == 0 {
		return nil
	}
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("apply the receipts: %w", err)
	}
	return nil
}
