package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// leastRows is how many rows the cases need.
const leastRows = 1000

// statementSizes are how many rows the tables have, unless --pending says so.
func statementSizes(s Settings) []int {
	if s.Pending != nil {
		return []int{*s.Pending}
	}
	return []int{10_000, 1_000_000}
}

// checkPending refuses tables that are too small.
func checkPending(s Settings) error {
	for _, rows := range statementSizes(s) {
		if rows < leastRows {
			return fmt.Errorf("--pending: %d; want at least %d", rows, leastRows)
		}
	}
	return nil
}

// staleAndFresh are the statistics that statements are measured with, in that order: the fresh ones replace
// the stale ones.
var staleAndFresh = []string{"stale", "fresh"}

// statementRuns are the results of each run, by the name of the row.
type statementRuns map[string][]statementResult

// statementRow is the name of a case's row.
func statementRow(c statementCase, rows int, statistics string) string {
	return fmt.Sprintf("%s (%s), %d rows, %s", c.file, c.what, rows, statistics)
}

// runStatements measures each statement of the store by itself, so many times as other scenarios measure
// what they compare.
func runStatements(ctx context.Context, b *Bench) error {
	table := b.table(Table{
		Name: "statements", Title: "Statements",
		Note: "Medians of the runs, each with tables of its own. Executed alone, in transactions that are rolled back; a hundred neighbours are drawn anew each time. Without planning, " +
			"round trip and commit. Stale: the plans, and the statistics that they are made with, are of empty tables.",
		Columns: []Column{
			{"p50", "ms", Absolute},
			{"p99", "ms", Absolute},
			{"buffers", "pages", Shape},
			{"executions", "", Shape},
		},
	})
	for file, why := range statementsNotMeasured {
		b.missing(file + ": " + why)
	}
	sizes := statementSizes(b.config.Settings)
	return b.withPostgres(ctx, nil, func(d *database) error {
		d.kept = 0 // each has its tables on a disk that has nothing else to do
		results := statementRuns{}
		err := compare(b.config.Settings.runs(), sizes, func(rows, _ int) error {
			return d.with(ctx, "statements", func(url string) error { return b.statementsOf(ctx, url, rows, results) })
		})
		if err != nil {
			return err
		}
		for _, rows := range sizes {
			b.reportStatements(table, rows, results)
		}
		return nil
	})
}

// reportStatements makes rows of the results with some number of rows.
func (b *Bench) reportStatements(table *Table, rows int, results statementRuns) {
	for _, statistics := range staleAndFresh {
		for _, c := range statementCases {
			name := statementRow(c, rows, statistics)
			b.add(table, statementResultRow(name, results[name]))
		}
	}
	worst, most := statementCase{}, 0.0
	byRun := func(c statementCase) []float64 {
		return ratiosOf(resultValues(results[statementRow(c, rows, "stale")]), resultValues(results[statementRow(c, rows, "fresh")]), "p50")
	}
	for _, c := range statementCases {
		stale := medianValues(resultValues(results[statementRow(c, rows, "stale")]))["p50"]
		if ratio := median(byRun(c)); stale > 1 && ratio > most {
			worst, most = c, ratio
		}
	}
	if most > 0 {
		b.overRuns(Shape, fmt.Sprintf("%d rows: the most that stale statistics cost a statement of over 1 ms (%s, %s)", rows, worst.file, worst.what), byRun(worst), "ratio")
	}
}

// statementsOf measures with some number of rows, first with plans that were made before they were
// there.
func (b *Bench) statementsOf(ctx context.Context, url string, rows int, results statementRuns) (err error) {
	admin, err := connectTo(ctx, url)
	if err != nil {
		return err
	}
	defer func() { _ = admin.Close(ctx) }() // everything was answered
	if err := keepStatistics(ctx, admin); err != nil {
		return err
	}
	fill := func() error {
		b.live(fmt.Sprintf("making %d rows in each table", rows))
		for _, sql := range statementRows {
			if err := execAll(ctx, admin, "fill the tables", withRows(sql, rows)); err != nil {
				return err
			}
		}
		return nil
	}
	if err := b.statementsWith(ctx, url, rows, "stale", fill, results); err != nil {
		return err
	}
	b.live("reading statistics")
	if err := execAll(ctx, admin, "read statistics", "VACUUM (ANALYZE)"); err != nil {
		return err
	}
	return b.statementsWith(ctx, url, rows, "fresh", func() error { return nil }, results)
}

// keepStatistics lets the tables have the statistics of empty ones from now on.
func keepStatistics(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, `
		SELECT quote_ident(nspname) || '.' || quote_ident(relname) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
		WHERE nspname = 'waybill' AND relkind = 'r'`)
	if err != nil {
		return fmt.Errorf("list the tables: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("list the tables: %w", err)
	}
	for _, name := range names {
		if err := execAll(ctx, conn, "keep statistics", "ALTER TABLE "+name+" SET (autovacuum_enabled = off)", "ANALYZE "+name); err != nil {
			return err
		}
	}
	return nil
}

// statementsWith prepares all cases, lets fill do what it will, and measures them.
func (b *Bench) statementsWith(ctx context.Context, url string, rows int, statistics string, fill func() error, results statementRuns) (err error) {
	sessions := map[bool]*statementSession{}
	defer func() {
		for _, s := range sessions {
			err = errors.Join(err, s.conn.Close(ctx))
		}
	}()
	for _, ingest := range []bool{true, false} {
		if sessions[ingest], err = openStatementSession(ctx, url, ingest); err != nil {
			delete(sessions, ingest)
			return err
		}
	}
	for _, c := range statementCases {
		if err := sessions[c.ingest].prepare(ctx, c, rows); err != nil {
			return err
		}
	}
	if err := fill(); err != nil {
		return err
	}
	limit := time.Second
	set(&limit, b.config.Settings.For)
	for _, c := range statementCases {
		b.live(fmt.Sprintf("%s: %s, %d rows, %s", c.file, c.what, rows, statistics))
		r, err := sessions[c.ingest].measure(ctx, c, rows, limit)
		if err != nil {
			return err
		}
		name := statementRow(c, rows, statistics)
		results[name] = append(results[name], r)
	}
	return nil
}
