package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/waybillhq/waybill/pipeline"
)

const (
	// A statement is executed so often, unless that takes longer than the time it has, and so
	// often at least, unless that takes longer than enough.
	mostExecutions, leastExecutions = 200, 5
	enough                          = 10 * time.Second
	// keptPlans is after how many executions it is clear whether Postgres keeps a plan for all
	// parameters: it makes five anew, and then compares.
	keptPlans = 12
)

// errGivenUp means that a statement took longer than the store lets it.
var errGivenUp = errors.New("given up")

// statementSession is a connection as one of Waybill's processes has them, with all statements
// prepared.
type statementSession struct {
	conn  *pgx.Conn
	limit time.Duration     // of a statement
	texts map[string]string // of the statements, by file
}

// openStatementSession connects as an ingest, or else as a janitor.
func openStatementSession(ctx context.Context, url string, ingest bool) (*statementSession, error) {
	c := pipeline.DefaultStoreConfig(url)
	c.KeepPlans = ingest
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, fmt.Errorf("connect to Postgres for measuring: %w", err)
	}
	for name, value := range c.Session() {
		config.RuntimeParams[name] = value
	}
	s := &statementSession{limit: c.StatementTimeout}
	if s.texts, err = pipeline.Statements(); err != nil {
		return nil, err
	}
	if s.conn, err = pgx.ConnectConfig(ctx, config); err != nil {
		return nil, fmt.Errorf("connect to Postgres for measuring: %w", err)
	}
	return s, nil
}

// prepared is the name of a case's statement.
func (c statementCase) prepared() string { return pgx.Identifier{c.file + ": " + c.what}.Sanitize() }

// prepare makes the plan that a connection has once it was used for a while.
func (s *statementSession) prepare(ctx context.Context, c statementCase, rows int) error {
	if _, err := s.conn.Exec(ctx, "PREPARE "+c.prepared()+" AS "+s.texts[c.file], pgx.QueryExecModeSimpleProtocol); err != nil {
		return fmt.Errorf("prepare %s: %w", c.file, err)
	}
	for range keptPlans {
		if _, err := s.explain(ctx, c, rows, ""); err != nil {
			return err
		}
	}
	return nil
}

// explain executes a case's statement, or with no options only plans it, in a transaction that is
// rolled back. The error is errGivenUp when it took too long.
func (s *statementSession) explain(ctx context.Context, c statementCase, rows int, options string) (plan []byte, err error) {
	tx, err := s.conn.Begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.file, err)
	}
	defer func() { _ = tx.Rollback(ctx) }() // ends what was begun, or the connection has ended
	settings := c.local
	if pipeline.PlannedAnew(c.file) {
		settings += "; SET LOCAL plan_cache_mode = force_custom_plan"
	}
	if c.scan {
		settings += "; SET LOCAL statement_timeout = 0"
	}
	if _, err := tx.Exec(ctx, settings, pgx.QueryExecModeSimpleProtocol); err != nil {
		return nil, fmt.Errorf("%s: settings: %w", c.file, err)
	}
	args, err := literals(ctx, tx, withRows(c.args, rows))
	if err != nil {
		return nil, fmt.Errorf("%s: parameters: %w", c.file, err)
	}
	err = tx.QueryRow(ctx, "EXPLAIN ("+options+" FORMAT JSON) EXECUTE "+c.prepared()+args, pgx.QueryExecModeSimpleProtocol).Scan(&plan)
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == "57014" { // query_canceled
		return nil, errGivenUp
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.file, err)
	}
	return plan, nil
}

// literals turns the row of a query into the parameters of an EXECUTE.
func literals(ctx context.Context, tx pgx.Tx, sql string) (string, error) {
	if sql == "" {
		return "", nil
	}
	rows, err := tx.Query(ctx, sql, pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		return "", err
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		for _, value := range rows.RawValues() { // as text, in this protocol
			literal := "NULL"
			if value != nil {
				literal = "'" + strings.ReplaceAll(string(value), "'", "''") + "'"
			}
			out = append(out, literal)
		}
	}
	return "(" + strings.Join(out, ", ") + ")", rows.Err()
}

// statementResult is what a statement took.
type statementResult struct {
	took    []float64 // milliseconds of each execution, in order of size
	buffers []float64
	plan    string // of the newest
	givenUp bool   // it was not done in the time that took then says
}

// measure executes a case's statement for a while.
func (s *statementSession) measure(ctx context.Context, c statementCase, rows int, limit time.Duration) (statementResult, error) {
	var r statementResult
	var last explained
	began := time.Now()
	for n := 0; n < mostExecutions && (n < leastExecutions && time.Since(began) < enough || time.Since(began) < limit); n++ {
		text, err := s.explain(ctx, c, rows, "ANALYZE, BUFFERS, TIMING OFF,")
		if errors.Is(err, errGivenUp) {
			r.givenUp, r.took = true, append(r.took, s.limit.Seconds()*1000)
			if text, err = s.explain(ctx, c, rows, ""); err == nil {
				last, err = parseExplained(text)
			}
			if err != nil {
				return r, err
			}
			break
		}
		if err != nil {
			return r, err
		}
		if last, err = parseExplained(text); err != nil {
			return r, fmt.Errorf("%s: %w", c.file, err)
		}
		r.took, r.buffers = append(r.took, last.Took), append(r.buffers, float64(last.buffers()))
	}
	slices.Sort(r.took)
	var generic bool
	err := s.conn.QueryRow(ctx, `SELECT generic_plans > custom_plans FROM pg_prepared_statements WHERE name = $1`, c.file+": "+c.what).Scan(&generic)
	if err != nil {
		return r, fmt.Errorf("%s: look at the plan: %w", c.file, err)
	}
	r.plan = "made anew each time: "
	if generic {
		r.plan = "kept: "
	}
	r.plan += last.kind()
	return r, nil
}

// values are the result's, by column of the table.
func (r statementResult) values() map[string]float64 {
	values := map[string]float64{"p50": median(r.took), "p99": percentile(r.took, 99), "executions": float64(len(r.took))}
	if len(r.buffers) > 0 {
		values["buffers"] = median(r.buffers)
	}
	return values
}

func resultValues(results []statementResult) []map[string]float64 {
	var out []map[string]float64
	for _, r := range results {
		out = append(out, r.values())
	}
	return out
}

// statementResultRow is a case's results in all runs, of which there must be some, as a row of the report.
func statementResultRow(name string, results []statementResult) TableRow {
	row := TableRow{Name: name, Values: medianValues(resultValues(results))}
	var plans []string
	givenUp := 0
	for _, r := range results {
		if !slices.Contains(plans, r.plan) {
			plans = append(plans, r.plan)
		}
		if r.givenUp {
			givenUp++
		}
	}
	row.Remark = strings.Join(plans, "; or ")
	if givenUp > 0 {
		row.Remark = fmt.Sprintf("GIVEN UP in %d of %d runs, as the store does after so long; %s", givenUp, len(results), row.Remark)
	}
	return row
}

// percentile of values in order of size, of which there must be some: the lowest that is not
// exceeded by more than the rest.
func percentile(sorted []float64, percent int) float64 {
	return sorted[(len(sorted)*percent+99)/100-1]
}
