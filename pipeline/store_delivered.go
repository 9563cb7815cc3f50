package pipeline

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// WaitsFor says which of the batches still wait for which sinks. One that is in no answer has its receipts,
// or was given up: it is a dead letter then.
func (s *Store) WaitsFor(ctx context.Context, batches []BatchID) (map[BatchID][]string, error) {
	numbers := make([]int64, len(batches))
	tokens := make(map[int64]uint64, len(batches))
	for i, b := range batches {
		numbers[i] = b.Number
		tokens[b.Number] = b.Token
	}
	rows, err := s.pool.Query(ctx, `SELECT batch, token, waiting_for FROM waybill.batches WHERE batch = ANY ($1::bigint[])`, numbers)
	if err != nil {
		return nil, fmt.Errorf("look which batches wait: %w", err)
	}
	out := map[BatchID][]string{}
	var number, token int64
	var sinks []string
	_, err = pgx.ForEachRow(rows, []any{&number, &token, &sinks}, func() error {
		if tokens[number] == uint64(token) {
			out[BatchID{number, uint64(token)}] = sinks
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look which batches wait: %w", err)
	}
	return out, nil
}

// Refused says of which events, by position, a sink has dead letters that it did not take after all: those
// of the given batches.
func (s *Store) Refused(ctx context.Context, batches []BatchID) (map[int64][]string, error) {
	first, past := make([]int64, len(batches)), make([]int64, len(batches))
	tokens := make(map[int64]uint64, len(batches))
	for i, b := range batches {
		first[i], past[i] = Position(b.Number, 0), Position(b.Number+1, 0)
		tokens[b.Number] = b.Token
	}
	rows, err := s.pool.Query(ctx, `
		SELECT d.position, d.token, d.sink FROM unnest($1::bigint[], $2::bigint[]) AS r(first, past)
		CROSS JOIN LATERAL (
			SELECT position, token, sink FROM waybill.dead_letters
			WHERE position >= r.first AND position < r.past AND delivered_late_at IS NULL) AS d`, first, past)
	if err != nil {
		return nil, fmt.Errorf("look for dead letters: %w", err)
	}
	out := map[int64][]string{}
	var position, token int64
	var sink string
	_, err = pgx.ForEachRow(rows, []any{&position, &token, &sink}, func() error {
		if number, _ := SplitPosition(position); tokens[number] == uint64(token) {
			out[position] = append(out[position], sink)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for dead letters: %w", err)
	}
	return out, nil
}
