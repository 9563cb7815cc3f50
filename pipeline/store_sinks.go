package pipeline

import (
	"context"
	_ "embed"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

var (
	//go:embed sql/drop_removed_sinks.sql
	dropRemovedSinksSQL string
	//go:embed sql/unlink_requeued.sql
	unlinkRequeuedSQL string
)

// Sinks returns the names of the sinks that events must reach.
func (s *Store) Sinks(ctx context.Context) (names []string, err error) {
	defer s.metrics.time("sinks")(&err)
	rows, err := s.pool.Query(ctx, `SELECT name FROM waybill.sinks ORDER BY name`)
	if err != nil {
		return nil, fmt.Errorf("read the sinks: %w", err)
	}
	names, err = pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("read the sinks: %w", err)
	}
	return names, nil
}

// DropRemovedSinks lets no batch wait for a sink that is no longer in the table of sinks: up
// to limit batches. It returns how many there were.
func (s *Store) DropRemovedSinks(ctx context.Context, limit int) (n int, err error) {
	defer s.metrics.time("drop_removed_sinks")(&err)
	err = pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
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
		b.Queue(unlinkRequeuedSQL, work.settled)
		b.Queue(deleteBatchesSQL, work.settled)
		b.Queue(deleteEventsSQL, work.first, work.past)
		return tx.SendBatch(ctx, b).Close()
	})
	if err != nil {
		return 0, fmt.Errorf("drop removed sinks: %w", err)
	}
	return n, nil
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
