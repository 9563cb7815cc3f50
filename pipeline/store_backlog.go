package pipeline

import (
	"context"
	_ "embed"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

var (
	//go:embed sql/backlog_save.sql
	backlogSaveSQL string
	//go:embed sql/backlog_read.sql
	backlogReadSQL string
	//go:embed sql/backlog_survey.sql
	backlogSurveySQL string
)

// Waiting is how much waits in Postgres for any sink.
type Waiting struct {
	Events, Bytes int64
	// SurveyedAt is when it was counted, by Postgres's clock; what was accepted later is
	// not in it.
	SurveyedAt time.Time
}

// Waiting sums a survey up: each event counts once, however many sinks it waits for.
func (s Survey) Waiting() Waiting {
	var events, bytes float64
	for _, b := range s.Backlogs {
		events += b.shareEvents
		bytes += b.shareBytes
	}
	return Waiting{Events: int64(events + 0.5), Bytes: int64(bytes + 0.5), SurveyedAt: s.Now}
}

// SaveWaiting leaves what a survey found where every ingest reads it, unless a newer one is
// there.
func (s *Store) SaveWaiting(ctx context.Context, w Waiting) (err error) {
	defer s.metrics.time("save_backlog")(&err)
	if _, err = s.pool.Exec(ctx, backlogSaveSQL, w.Events, w.Bytes, w.SurveyedAt); err != nil {
		return fmt.Errorf("save the backlog: %w", err)
	}
	return nil
}

// ReadWaiting returns the newest survey's sum. When no janitor has made one for as long as
// oldAfter, it counts itself, unless another process is about it.
func (s *Store) ReadWaiting(ctx context.Context, oldAfter time.Duration) (w Waiting, err error) {
	defer s.metrics.time("read_backlog")(&err)
	w, old, err := s.readWaiting(ctx, oldAfter)
	if err != nil || !old {
		return w, err
	}
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT set_config('statement_timeout', $1, true)`, millis(scanTimeout)); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, backlogSurveySQL, oldAfter.Microseconds())
		return err
	})
	if err != nil {
		return w, fmt.Errorf("count the backlog: %w", err)
	}
	w, _, err = s.readWaiting(ctx, oldAfter)
	return w, err
}

func (s *Store) readWaiting(ctx context.Context, oldAfter time.Duration) (w Waiting, old bool, err error) {
	err = s.pool.QueryRow(ctx, backlogReadSQL, oldAfter.Microseconds()).Scan(&w.Events, &w.Bytes, &w.SurveyedAt, &old)
	if err != nil {
		return Waiting{}, false, fmt.Errorf("read the backlog: %w", err)
	}
	return w, old, nil
}
