package pipeline

import (
	"context"
	_ "embed"
	"fmt"
	"time"
)

//go:embed sql/end_stalled_copies.sql
var endStalledCopiesSQL string

// EndStalledCopies ends the transactions of ingests that have been in a COPY for longer than
// limit and send nothing: a process that stands still there would hold the heads of its keys
// until it goes on or its machine is gone. It returns their number.
func (s *Store) EndStalledCopies(ctx context.Context, limit time.Duration) (n int, err error) {
	defer s.metrics.time("end_stalled_copies")(&err)
	if err = s.pool.QueryRow(ctx, endStalledCopiesSQL, limit.Microseconds()).Scan(&n); err != nil {
		return 0, fmt.Errorf("end stalled copies: %w", err)
	}
	return n, nil
}
