package pipeline

import (
	"context"
	_ "embed"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/pipeline/failpoint"
)

var (
	//go:embed sql/expire.sql
	expireSQL string
	//go:embed sql/purge_dead_letters.sql
	purgeDeadLettersSQL string
	//go:embed sql/requeue.sql
	requeueSQL string
	//go:embed sql/list_dead_letters.sql
	listDeadLettersSQL string
)

// DeadLetter is an event that a sink refused, or that it did not take in time.
type DeadLetter struct {
	Position int64
	Sink     string
	Code     string
	Reason   string
	FailedAt time.Time
	// RequeuedAt is when it was put back into the queue, zero if it was not;
	// DeliveredLateAt when the sink took it after all.
	RequeuedAt, DeliveredLateAt time.Time

	Source, Type, ID string
	Seqnum           int64
	AcceptedAt       time.Time
	// Encoded is the encoding of the CloudEvent, without seqnum.
	Encoded []byte
}

// ListDeadLetters returns up to limit of the dead letters of a sink with a code, the oldest
// failure first. An empty sink or code is any.
func (s *Store) ListDeadLetters(ctx context.Context, sink, code string, limit int) ([]DeadLetter, error) {
	rows, err := s.pool.Query(ctx, listDeadLettersSQL, sink, code, limit)
	if err != nil {
		return nil, fmt.Errorf("list dead letters: %w", err)
	}
	letters, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (DeadLetter, error) {
		var d DeadLetter
		var requeued, late *time.Time
		err := row.Scan(&d.Position, &d.Sink, &d.Code, &d.Reason, &d.FailedAt, &requeued, &late,
			&d.Source, &d.Type, &d.ID, &d.Seqnum, &d.AcceptedAt, &d.Encoded)
		if requeued != nil {
			d.RequeuedAt = *requeued
		}
		if late != nil {
			d.DeliveredLateAt = *late
		}
		return d, err
	})
	if err != nil {
		return nil, fmt.Errorf("list dead letters: %w", err)
	}
	return letters, nil
}

// CountRequeueable returns how many dead letters Requeue would put back, counting up to
// limit.
func (s *Store) CountRequeueable(ctx context.Context, sink, code string, limit int) (int, error) {
	var n int
	err := s.pool.QueryRow(ctx, `
		SELECT count(*) FROM (
			SELECT FROM waybill.dead_letters
			WHERE sink = $1 AND ($2 = '' OR code = $2) AND requeued_at IS NULL AND delivered_late_at IS NULL
			LIMIT $3) AS d`, sink, code, limit).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count dead letters: %w", err)
	}
	return n, nil
}

// expireBatches and expireEvents bound one Expire, so that its statement takes a second or two
// and not longer than statements may.
const (
	expireBatches = 100
	expireEvents  = 8192
)

// Expire moves some batches past their TTL into dead_letters, the oldest first, and returns
// the number of dead letters by sink; nothing once no batch is past its TTL.
func (s *Store) Expire(ctx context.Context) (map[string]int, error) {
	failpoint.Hit("janitor/before-expire")
	rows, err := s.pool.Query(ctx, expireSQL, expireBatches, expireEvents)
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
	if err := failpoint.Err("janitor/after-expire", rows.Err()); err != nil {
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
	names, err := s.Sinks(ctx)
	if err != nil {
		return 0, fmt.Errorf("requeue: %w", err)
	}
	if !slices.Contains(names, sink) {
		return 0, fmt.Errorf("requeue: there is no sink %q; the sinks are %s", sink, strings.Join(names, ", "))
	}
	var micros *int64
	if ttl > 0 {
		us := ttl.Microseconds()
		micros = &us
	}
	var wantCode *string
	if code != "" {
		wantCode = &code
	}
	failpoint.Hit("waybill/before-requeue")
	tag, err := s.pool.Exec(ctx, requeueSQL, sink, wantCode, limit, micros)
	err = failpoint.Err("waybill/after-requeue", err)
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
