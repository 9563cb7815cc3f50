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

// runStatements measures each statement of the store by itself.
func runStatements(ctx context.Context, b *Bench) error {
	table := b.table(Table{
		Name: "statements", Title: "Statements",
		Note: "Executed alone, in transactions that are rolled back; a hundred neighbours are drawn anew each time. Without planning, " +
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
	return b.withPostgres(ctx, nil, func(d *database) error {
		for _, rows := range statementSizes(b.config.Settings) {
			if rows < leastRows {
				return fmt.Errorf("--pending: %d; want at least %d", rows, leastRows)
			}
			err := d.with(ctx, fmt.Sprintf("statements_%d", rows), func(url string) error {
				return b.statementsOf(ctx, url, table, rows)
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// statementsOf measures with some number of rows, first with plans that were made before they were
// there.
func (b *Bench) statementsOf(ctx context.Context, url string, table *Table, rows int) (err error) {
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
	stale, err := b.statementsWith(ctx, url, table, rows, "stale", fill)
	if err != nil {
		return err
	}
	b.live("reading statistics")
	if err := execAll(ctx, admin, "read statistics", "VACUUM (ANALYZE)"); err != nil {
		return err
	}
	fresh, err := b.statementsWith(ctx, url, table, rows, "fresh", func() error { return nil })
	if err != nil {
		return err
	}
	worst, name := 0.0, ""
	for key := range fresh {
		if ratio := stale[key] / fresh[key]; ratio > worst && stale[key] > 1 {
			worst, name = ratio, key
		}
	}
	if name != "" {
		b.figure(Shape, fmt.Sprintf("%d rows: the most that stale statistics cost a statement of over 1 ms (%s)", rows, name), worst, "ratio")
	}
	return nil
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

// statementsWith prepares all cases, lets fill do what it will, and measures them. It returns their
// medians, by case, in milliseconds.
func (b *Bench) statementsWith(ctx context.Context, url string, table *Table, rows int, statistics string, fill func() error) (_ map[string]float64, err error) {
	sessions := map[bool]*statementSession{}
	defer func() {
		for _, s := range sessions {
			err = errors.Join(err, s.conn.Close(ctx))
		}
	}()
	for _, ingest := range []bool{true, false} {
		if sessions[ingest], err = openStatementSession(ctx, url, ingest); err != nil {
			delete(sessions, ingest)
			return nil, err
		}
	}
	for _, c := range statementCases {
		if err := sessions[c.ingest].prepare(ctx, c, rows); err != nil {
			return nil, err
		}
	}
	if err := fill(); err != nil {
		return nil, err
	}
	limit := time.Second
	set(&limit, b.config.Settings.For)
	medians := map[string]float64{}
	for _, c := range statementCases {
		b.live(fmt.Sprintf("%s: %s, %d rows, %s", c.file, c.what, rows, statistics))
		r, err := sessions[c.ingest].measure(ctx, c, rows, limit)
		if err != nil {
			return nil, err
		}
		key := c.file + " (" + c.what + ")"
		medians[key] = median(r.took)
		b.add(table, r.row(fmt.Sprintf("%s, %d rows, %s", key, rows, statistics)))
	}
	return medians, nil
}
