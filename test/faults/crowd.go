package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/internal/devrun"
)

// crowd makes a million events wait that are taken for queued, and that the statistics of
// their tables know nothing of. They go when it ends.
type crowd struct{ s *system }

const (
	// crowdGrace is the grace period meanwhile: above the length of a run.
	crowdGrace = 5 * time.Minute
	// crowdTime bounds the statements that bring the crowd and take it away.
	crowdTime = time.Minute
	// slowStatement is how long a statement of Waybill's may take meanwhile: above the wait
	// for a row, below what a statement is cancelled after.
	slowStatement = 5 * time.Second
)

// crowdSQL makes 100,000 batches of one event and 450 of 2,000. Their numbers are far above
// those of the run, and the grace period is longer than that, so that nothing finds them stale.
var crowdSQL = []string{
	`ALTER SYSTEM SET log_min_duration_statement = '200ms'`,
	`ALTER SYSTEM SET log_line_prefix = '%m [%a] '`,
	`SELECT pg_reload_conf()`,
	`ALTER TABLE waybill.batches SET (autovacuum_enabled = off)`,
	`ALTER TABLE waybill.events SET (autovacuum_enabled = off)`,
	`ANALYZE waybill.batches`, `ANALYZE waybill.events`,
	`INSERT INTO waybill.batches (batch, token, lane, events, bytes, queued_at, waiting_for)
		SELECT (1::bigint << 40) + i, i, i % 16, CASE WHEN i < 450 THEN 2000 ELSE 1 END, 100, now(), '{archive,ingress}'
		FROM generate_series(0, 100449) i`,
	`INSERT INTO waybill.events (position, source, type, event_id, seqnum, event)
		SELECT ((1::bigint << 40) + i) << 12 | n, '/crowd', 't', 'x', 1, ''
		FROM generate_series(0, 100449) i, LATERAL generate_series(0, CASE WHEN i < 450 THEN 1999 ELSE 0 END) n`,
}

var crowdGoneSQL = []string{
	`DELETE FROM waybill.events WHERE position >= 1::bigint << 52`,
	`DELETE FROM waybill.batches WHERE batch >= 1::bigint << 40`,
}

// crowded gives the pipeline a grace period that outlasts the crowd.
func crowded(c *devrun.Config, _ *system) error {
	c.Grace = crowdGrace
	return nil
}

func (f *crowd) inject(ctx context.Context) error { return f.run(ctx, crowdSQL) }

func (f *crowd) heal(ctx context.Context) error { return f.run(ctx, crowdGoneSQL) }

// run runs statements, each again where the connection broke.
func (f *crowd) run(ctx context.Context, statements []string) error {
	ctx, cancel := context.WithTimeout(ctx, crowdTime)
	defer cancel()
	for _, statement := range statements {
		for {
			err := f.once(ctx, statement)
			if err == nil {
				break
			}
			sleep(ctx, lookEvery)
			if ctx.Err() != nil {
				return fmt.Errorf("a million events that wait: %w", err)
			}
		}
	}
	return nil
}

func (f *crowd) once(ctx context.Context, statement string) error {
	conn, err := pgx.Connect(ctx, f.s.stack.DatabaseURL)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }() // what it did is done
	_, err = conn.Exec(ctx, statement)
	return err
}

// duration is a line of Postgres's log on a statement of Waybill's.
var duration = regexp.MustCompile(`\[waybill\] LOG:  duration: ([0-9]+)\.[0-9]+ ms[^\n]*`)

// judgeStatements wants no statement to have taken too long.
func judgeStatements(t *trial, r *result, _ *evidence) {
	log, err := os.ReadFile(t.system.postgresLog())
	if err == nil && !bytes.Contains(log, []byte("parameter \"log_min_duration_statement\" changed")) {
		err = errors.New("it does not tell of slow statements")
	}
	if err != nil {
		r.violation("the harness: Postgres's log: %v", err)
		return
	}
	ms, what := slowest(log)
	r.SlowestStatement = float64(ms) / 1000
	if limit := slowStatement.Milliseconds(); ms > limit {
		r.violation("a statement took %d ms, the limit is %d: %s", ms, limit, what)
	}
	if least := r.Rate * r.For / 4; float64(r.Acknowledged) < least {
		r.violation("%d events were acknowledged, fewer than %.0f: a million that wait slow down what comes in", r.Acknowledged, least)
	}
}

// slowest returns the longest duration of a statement of Waybill's and the line about it.
func slowest(log []byte) (ms int64, line string) {
	for _, m := range duration.FindAllSubmatch(log, -1) {
		if n, err := strconv.ParseInt(string(m[1]), 10, 64); err == nil && n > ms {
			ms, line = n, string(m[0])
		}
	}
	return ms, line
}
