package pipeline

import (
	"cmp"
	"context"
	_ "embed"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/pipeline/failpoint"
)

var (
	//go:embed sql/survey.sql
	surveySQL string
	//go:embed sql/find_stale.sql
	findStaleSQL string
	//go:embed sql/claim_stale.sql
	claimStaleSQL string
	//go:embed sql/read_events.sql
	readEventsSQL string
)

// Backlog is what waits for one sink in one lane.
type Backlog struct {
	Sink    string
	Lane    int
	Batches int64
	Events  int64
	Bytes   int64
	// By Postgres's clock.
	OldestQueued   time.Time // zero: none was queued yet
	OldestAccepted time.Time
	OldestExpires  time.Time // zero: none expires
	// Overdue counts the batches that were queued longer ago than the grace period, or, by a
	// clock that jumped back since, later than it from now.
	Overdue int64
	// Unqueued counts the requeued ones that were not queued yet, and those that were queued in
	// the future, by a clock that jumped back since.
	Unqueued int64

	// NearTTL counts the events that have less than a fifth of their time to live left.
	NearTTL int64

	// The batches' events and bytes, each divided by the number of sinks it waits for.
	shareEvents, shareBytes float64
}

// Survey is what waits, as of one moment by Postgres's clock.
type Survey struct {
	Now      time.Time
	Backlogs []Backlog
}

// BySink sums the lanes up.
func (s Survey) BySink() map[string]Backlog {
	out := map[string]Backlog{}
	for _, b := range s.Backlogs {
		sum, seen := out[b.Sink]
		if !seen {
			sum = b
			sum.Batches, sum.Events, sum.Bytes, sum.Overdue, sum.Unqueued, sum.NearTTL = 0, 0, 0, 0, 0, 0
		}
		sum.Lane = -1
		sum.Batches += b.Batches
		sum.Events += b.Events
		sum.Bytes += b.Bytes
		sum.Overdue += b.Overdue
		sum.Unqueued += b.Unqueued
		sum.NearTTL += b.NearTTL
		sum.OldestQueued = earlier(sum.OldestQueued, b.OldestQueued)
		sum.OldestAccepted = earlier(sum.OldestAccepted, b.OldestAccepted)
		sum.OldestExpires = earlier(sum.OldestExpires, b.OldestExpires)
		out[b.Sink] = sum
	}
	return out
}

// Due reports whether something is past its TTL, as of the survey.
func (s Survey) Due() bool {
	return slices.ContainsFunc(s.Backlogs, func(b Backlog) bool { return !b.OldestExpires.IsZero() && b.OldestExpires.Before(s.Now) })
}

// WaitsForOthers reports whether something waits for a sink that is not among those named.
func (s Survey) WaitsForOthers(names []string) bool {
	return slices.ContainsFunc(s.Backlogs, func(b Backlog) bool { return !slices.Contains(names, b.Sink) })
}

// stale reports whether any of it was queued before a time, as of the survey.
func (b Backlog) stale(before time.Time) bool {
	return b.Unqueued > 0 || (!b.OldestQueued.IsZero() && b.OldestQueued.Before(before))
}

// earlier ignores zero times.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}

// scanTimeout bounds a statement that walks over all batches, and nothing else does: a second
// or so per million, while the timeout of the others is for what must not hold locks.
const scanTimeout = 10 * time.Minute

// scan runs a read-only statement that may take as long as scanTimeout.
func (s *Store) scan(ctx context.Context, read func(pgx.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, scanTimeout)
	defer cancel()
	return pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT set_config('statement_timeout', $1, true)`, millis(scanTimeout)); err != nil {
			return err
		}
		return read(tx)
	})
}

// Survey scans the batches once. It is cheap while few wait and takes a second or so per
// million.
func (s *Store) Survey(ctx context.Context) (out Survey, err error) {
	defer s.metrics.time("survey")(&err)
	err = s.scan(ctx, func(tx pgx.Tx) error {
		// Before the scan: what is accepted during it counts as newer.
		if err := tx.QueryRow(ctx, `SELECT now()`).Scan(&out.Now); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, surveySQL, s.grace.Microseconds())
		if err != nil {
			return err
		}
		out.Backlogs, err = pgx.CollectRows(rows, scanBacklog)
		return err
	})
	if err != nil {
		return Survey{}, fmt.Errorf("survey the batches: %w", err)
	}
	return out, nil
}

func scanBacklog(row pgx.CollectableRow) (Backlog, error) {
	var b Backlog
	var lane int16
	var queued, expires *time.Time
	err := row.Scan(&b.Sink, &lane, &b.Batches, &b.Events, &b.Bytes, &queued, &b.OldestAccepted, &expires, &b.Overdue,
		&b.Unqueued, &b.NearTTL, &b.shareEvents, &b.shareBytes)
	b.Lane = int(lane)
	if queued != nil {
		b.OldestQueued = *queued
	}
	if expires != nil {
		b.OldestExpires = *expires
	}
	return b, err
}

// staleFor says before when a batch must have been queued to be stale for a sink.
type staleFor struct {
	sink   string
	before time.Time
}

// claimed is a batch that was taken for retransmission, with its message body.
type claimed struct {
	batch Batch
	body  []byte
	rows  rows
}

// staleBatch is a batch that FindStale found.
type staleBatch struct{ number, bytes int64 }

// FindStale returns the numbers and sizes of up to limit stale batches of a lane, oldest
// first. By the time they are claimed some may no longer be.
func (s *Store) FindStale(ctx context.Context, lane int, stale []staleFor, limit int) (out []staleBatch, err error) {
	defer s.metrics.time("find_stale")(&err)
	sinks, before := staleArgs(stale)
	err = s.scan(ctx, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, findStaleSQL, int16(lane), sinks, before, limit, s.grace.Microseconds())
		if err != nil {
			return err
		}
		out, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (b staleBatch, err error) {
			return b, row.Scan(&b.number, &b.bytes)
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("find stale batches of lane %d: %w", lane, err)
	}
	return out, nil
}

func staleArgs(stale []staleFor) (sinks []string, before []time.Time) {
	for _, w := range stale {
		sinks, before = append(sinks, w.sink), append(before, w.before)
	}
	return sinks, before
}

// ClaimStale takes those of the numbered batches that are stale: it counts the attempt up and
// sets queued_at to now, so that another janitor does not take them too. What is claimed and
// then not published becomes stale again.
//
// A batch of which rows of events are missing or are not what was accepted is left out of the
// result and taken apart: the damaged events become dead letters with the code CodeDamaged, and
// each of the others a batch of its own. It is named in damaged.
func (s *Store) ClaimStale(ctx context.Context, numbers []int64, stale []staleFor) (out []claimed, damaged []damagedBatch, err error) {
	defer s.metrics.time("claim_stale")(&err)
	out, damaged, err = s.claimStale(ctx, numbers, stale)
	if isNumberTaken(err) {
		if _, err := s.pool.Exec(ctx, repairNumbersSQL); err != nil {
			return nil, nil, fmt.Errorf("set the batch numbers past the stored ones: %w", err)
		}
		out, damaged, err = s.claimStale(ctx, numbers, stale)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("claim %d stale batches: %w", len(numbers), err)
	}
	return out, damaged, nil
}

func (s *Store) claimStale(ctx context.Context, numbers []int64, stale []staleFor) (out []claimed, damaged []damagedBatch, err error) {
	sinks, before := staleArgs(stale)
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		out, damaged = nil, nil
		rows, err := tx.Query(ctx, claimStaleSQL, numbers, sinks, before, s.grace.Microseconds())
		if err != nil {
			return err
		}
		all, err := pgx.CollectRows(rows, scanClaimed)
		if err != nil || len(all) == 0 {
			return err
		}
		// UPDATE … RETURNING keeps no order, and the lane's is by number.
		slices.SortFunc(all, func(a, b claimed) int { return cmp.Compare(a.batch.ID.Number, b.batch.ID.Number) })
		if err := readBodies(ctx, tx, all); err != nil {
			return err
		}
		failpoint.Hit("janitor/before-claim")
		for _, c := range all {
			if c.rows.whole() {
				out = append(out, c)
				continue
			}
			letters, err := c.rows.split(ctx, tx, c.batch.ID.Number)
			if err != nil {
				return err
			}
			damaged = append(damaged, damagedBatch{c.batch.ID, letters})
		}
		return nil
	})
	return out, damaged, failpoint.Err("janitor/after-claim", err)
}

func scanClaimed(row pgx.CollectableRow) (claimed, error) {
	var c claimed
	var token int64
	var lane, events int16
	var bytes int64
	var expires *time.Time
	var originPosition, originToken *int64
	var originLane *int16
	b := &c.batch
	err := row.Scan(&b.ID.Number, &token, &lane, &events, &bytes, &b.Attempt, &b.AcceptedAt, &b.QueuedAt,
		&expires, &b.Sinks, &originPosition, &originToken, &originLane)
	if err != nil {
		return c, err
	}
	b.ID.Token, b.Lane, b.count = uint64(token), int(lane), int(events)
	b.AcceptedAt, b.QueuedAt = b.AcceptedAt.UTC(), b.QueuedAt.UTC()
	if expires != nil {
		b.ExpiresAt = expires.UTC()
	}
	if originPosition != nil {
		number, index := SplitPosition(*originPosition)
		b.Origin = &Origin{Batch: BatchID{Number: number, Token: uint64(*originToken)}, Index: index}
		b.OriginLane = b.Lane
		if originLane != nil {
			b.OriginLane = int(*originLane)
		}
	}
	c.body = make([]byte, 0, int(bytes)+int(events)*maxEventOverhead)
	return c, nil
}

// readBodies builds the message bodies, exactly those that ingest built, of the batches whose
// rows are all there and sound.
func readBodies(ctx context.Context, tx pgx.Tx, batches []claimed) error {
	byNumber := make(map[int64]*claimed, len(batches))
	first, past := make([]int64, len(batches)), make([]int64, len(batches))
	for i := range batches {
		number := batches[i].batch.ID.Number
		byNumber[number] = &batches[i]
		first[i], past[i] = Position(number, 0), Position(number+1, 0)
	}
	found, err := tx.Query(ctx, readEventsSQL, first, past)
	if err != nil {
		return fmt.Errorf("read the events: %w", err)
	}
	var position, seqnum int64
	var source, typ, id string
	var encoded []byte
	_, err = pgx.ForEachRow(found, []any{&position, &source, &typ, &id, &seqnum, &encoded}, func() error {
		number, index := SplitPosition(position)
		c := byNumber[number]
		c.rows.take(number, index, c.batch.count, damageOf(source, typ, id, encoded))
		if c.rows.whole() {
			c.body = appendEvent(c.body, encoded, seqnum)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read the events: %w", err)
	}
	for i := range batches {
		batches[i].rows.missing(batches[i].batch.ID.Number, batches[i].batch.count)
	}
	return nil
}
