package pipeline

import (
	"context"
	_ "embed"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

//go:embed sql/list_dead_letters.sql
var listDeadLettersSQL string

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
