package pipeline

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

var (
	//go:embed sql/survey.sql
	surveySQL string
	//go:embed sql/claim_stale.sql
	claimStaleSQL string
	//go:embed sql/read_events.sql
	readEventsSQL string
	//go:embed sql/expire.sql
	expireSQL string
	//go:embed sql/purge_dead_letters.sql
	purgeDeadLettersSQL string
	//go:embed sql/requeue.sql
	requeueSQL string
	//go:embed sql/drop_removed_sinks.sql
	dropRemovedSinksSQL string
)

// Backlog is what waits for one sink in one lane.
type Backlog struct {
	Sink    string
	Lane    int
	Batches int64
	Events  int64
	Bytes   int64
	// By Postgres's clock.
	OldestQueued   time.Time
	OldestAccepted time.Time
	OldestExpires  time.Time // zero: none expires
	// Overdue counts the batches that were queued longer ago than the grace period.
	Overdue int64
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
			sum.Batches, sum.Events, sum.Bytes, sum.Overdue = 0, 0, 0, 0
		}
		sum.Lane = -1
		sum.Batches += b.Batches
		sum.Events += b.Events
		sum.Bytes += b.Bytes
		sum.Overdue += b.Overdue
		sum.OldestQueued = earlier(sum.OldestQueued, b.OldestQueued)
		sum.OldestAccepted = earlier(sum.OldestAccepted, b.OldestAccepted)
		sum.OldestExpires = earlier(sum.OldestExpires, b.OldestExpires)
		out[b.Sink] = sum
	}
	return out
}

// earlier ignores zero times.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || (!b.IsZero() && b.Before(a)) {
		return b
	}
	return a
}

// Survey scans the batches once. It is cheap while few wait and takes a fraction of a
// second per million.
func (s *Store) Survey(ctx context.Context) (Survey, error) {
	var out Survey
	// Read before the scan: what is accepted during it counts as newer.
	if err := s.pool.QueryRow(ctx, `SELECT now()`).Scan(&out.Now); err != nil {
		return out, fmt.Errorf("read Postgres's clock: %w", err)
	}
	rows, err := s.pool.Query(ctx, surveySQL, s.grace.Microseconds())
	if err != nil {
		return out, fmt.Errorf("survey the batches: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var b Backlog
		var lane int16
		var expires *time.Time
		if err := rows.Scan(&b.Sink, &lane, &b.Batches, &b.Events, &b.Bytes, &b.OldestQueued, &b.OldestAccepted, &expires, &b.Overdue, nil); err != nil {
			return out, fmt.Errorf("survey the batches: %w", err)
		}
		b.Lane = int(lane)
		if expires != nil {
			b.OldestExpires = *expires
		}
		out.Backlogs = append(out.Backlogs, b)
	}
	if err := rows.Err(); err != nil {
		return out, fmt.Errorf("survey the batches: %w", err)
	}
	return out, nil
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
}

// ClaimStale takes the oldest stale batches of a lane, up to maxBytes of events and
// maxBatches: it counts the attempt up and sets queued_at to now, so that another janitor
// does not take them too. What is claimed and then not published becomes stale again.
// Batches whose events are not all there are left out of the result and named in damaged.
func (s *Store) ClaimStale(ctx context.Context, lane int, stale []staleFor, maxBytes int64, maxBatches int) (out []claimed, damaged []BatchID, err error) {
	sinks, before := make([]string, len(stale)), make([]time.Time, len(stale))
	for i, w := range stale {
		sinks[i], before[i] = w.sink, w.before
	}
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		out, damaged = nil, nil
		rows, err := tx.Query(ctx, claimStaleSQL, int16(lane), sinks, before, maxBytes, maxBatches)
		if err != nil {
			return err
		}
		all, err := pgx.CollectRows(rows, scanClaimed)
		if err != nil || len(all) == 0 {
			return err
		}
		// UPDATE … RETURNING keeps no order, and the lane's is by number.
		slices.SortFunc(all, func(a, b claimed) int { return cmp.Compare(a.batch.ID.Number, b.batch.ID.Number) })
		found, err := readBodies(ctx, tx, all)
		if err != nil {
			return err
		}
		for _, c := range all {
			if found[c.batch.ID.Number] == c.batch.count {
				out = append(out, c)
			} else {
				damaged = append(damaged, c.batch.ID)
			}
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("claim stale batches of lane %d: %w", lane, err)
	}
	return out, damaged, nil
}

func scanClaimed(row pgx.CollectableRow) (claimed, error) {
	var c claimed
	var token int64
	var lane, events int16
	var bytes int64
	var expires *time.Time
	var originPosition, originToken *int64
	b := &c.batch
	err := row.Scan(&b.ID.Number, &token, &lane, &events, &bytes, &b.Attempt, &b.AcceptedAt, &b.QueuedAt,
		&expires, &b.Sinks, &originPosition, &originToken)
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
	}
	c.body = make([]byte, 0, int(bytes)+int(events)*maxEventOverhead)
	return c, nil
}

// readBodies builds the message bodies, exactly those that ingest built, and returns how
// many events of each batch it found in their places.
func readBodies(ctx context.Context, tx pgx.Tx, batches []claimed) (found map[int64]int, err error) {
	byNumber := make(map[int64]*claimed, len(batches))
	first, past := make([]int64, len(batches)), make([]int64, len(batches))
	for i := range batches {
		number := batches[i].batch.ID.Number
		byNumber[number] = &batches[i]
		first[i], past[i] = Position(number, 0), Position(number+1, 0)
	}
	rows, err := tx.Query(ctx, readEventsSQL, first, past)
	if err != nil {
		return nil, fmt.Errorf("read the events: %w", err)
	}
	found = make(map[int64]int, len(batches))
	var position, seqnum int64
	var encoded []byte
	_, err = pgx.ForEachRow(rows, []any{&position, &seqnum, &encoded}, func() error {
		number, index := SplitPosition(position)
		if index == found[number] {
			found[number]++
			c := byNumber[number]
			c.body = appendEvent(c.body, encoded, seqnum)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the events: %w", err)
	}
	return found, nil
}

// Expire moves up to limit batches past their TTL into dead_letters and returns the number
// of dead letters by sink.
func (s *Store) Expire(ctx context.Context, limit int) (map[string]int, error) {
	rows, err := s.pool.Query(ctx, expireSQL, limit)
	if err != nil {
		return nil, fmt.Errorf("expire: %w", err)
	}
	defer rows.Close()
	out := map[string]int{}
	for rows.Next() {
		var sink string
		var n int
		if err := rows.Scan(&sink, &n); err != nil {
			return nil, fmt.Errorf("expire: %w", err)
		}
		out[sink] = n
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("expire: %w", err)
	}
	return out, nil
}

// PurgeDeadLetters deletes up to limit dead letters older than ttl that were not requeued.
func (s *Store) PurgeDeadLetters(ctx context.Context, ttl time.Duration, limit int) (int, error) {
	tag, err := s.pool.Exec(ctx, purgeDeadLettersSQL, ttl.Microseconds(), limit)
	if err != nil {
		return 0, fmt.Errorf("purge dead letters: %w", err)
	}
	return int(tag.RowsAffected()), nil
}

// Requeue puts up to limit of a sink's dead letters back into the queue, those with the
// given code or, when it is empty, all. Each keeps its event id and seqnum, waits for this
// sink only, and stays a dead letter until the sink's receipt. It returns their number.
func (s *Store) Requeue(ctx context.Context, sink, code string, limit int, ttl time.Duration) (int, error) {
	var micros *int64
	if ttl > 0 {
		us := ttl.Microseconds()
		micros = &us
	}
	var wantCode *string
	if code != "" {
		wantCode = &code
	}
	tag, err := s.pool.Exec(ctx, requeueSQL, sink, wantCode, limit, micros)
	if isNumberTaken(err) {
		if _, err := s.pool.Exec(ctx, repairNumbersSQL); err != nil {
			return 0, fmt.Errorf("requeue: set the batch numbers past the stored ones: %w", err)
		}
		tag, err = s.pool.Exec(ctx, requeueSQL, sink, wantCode, limit, micros)
	}
	if err != nil {
		return 0, fmt.Errorf("requeue: %w", err)
	}
	return int(tag.RowsAffected()), nil
}

// DropRemovedSinks lets no batch wait for a sink that is no longer in the table of sinks.
func (s *Store) DropRemovedSinks(ctx context.Context, limit int) (int, error) {
	n := 0
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		n = 0
		rows, err := tx.Query(ctx, dropRemovedSinksSQL, limit)
		if err != nil {
			return err
		}
		var number int64
		var empty bool
		var work settleRows
		_, err = pgx.ForEachRow(rows, []any{&number, &empty}, func() error {
			n++
			if empty {
				work.settled = append(work.settled, number)
				work.addRange(number)
			}
			return nil
		})
		if err != nil || len(work.settled) == 0 {
			return err
		}
		b := &pgx.Batch{}
		b.Queue(deleteBatchesSQL, work.settled)
		b.Queue(deleteEventsSQL, work.first, work.past)
		return tx.SendBatch(ctx, b).Close()
	})
	if err != nil {
		return 0, fmt.Errorf("drop removed sinks: %w", err)
	}
	return n, nil
}

// DeadLetters counts dead letters by sink and code, reading at most limit rows.
func (s *Store) DeadLetters(ctx context.Context, limit int) (map[[2]string]int64, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT sink, code, count(*) FROM (SELECT sink, code FROM waybill.dead_letters LIMIT $1) AS d
		GROUP BY sink, code`, limit)
	if err != nil {
		return nil, fmt.Errorf("count dead letters: %w", err)
	}
	out := map[[2]string]int64{}
	var sink, code string
	var n int64
	if _, err := pgx.ForEachRow(rows, []any{&sink, &code, &n}, func() error {
		out[[2]string{sink, code}] = n
		return nil
	}); err != nil {
		return nil, fmt.Errorf("count dead letters: %w", err)
	}
	return out, nil
}

// RemoveSink takes a sink out of the table of sinks: events no longer wait for it, once a
// janitor has passed. Its dead letters stay.
func (s *Store) RemoveSink(ctx context.Context, name string) error {
	tag, err := s.pool.Exec(ctx, `DELETE FROM waybill.sinks WHERE name = $1`, name)
	if err != nil {
		return fmt.Errorf("remove sink %s: %w", name, err)
	}
	if tag.RowsAffected() == 0 {
		return errors.New("sink " + name + ": there is no such sink")
	}
	return nil
}
