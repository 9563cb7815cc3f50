package bench

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// watchedTables are those that every event goes through.
var watchedTables = []string{"batches", "events", "heads"}

// tableProbe looks at the tables of a database.
type tableProbe struct {
	conn *pgx.Conn
	// pgstattuple says whether the extension of that name is there; why says why not.
	pgstattuple bool
	why         error
	indexLook   time.Time // when the next look into the indexes may be
}

func newTableProbe(ctx context.Context, url string) (*tableProbe, error) {
	conn, err := connectTo(ctx, url)
	if err != nil {
		return nil, err
	}
	p := &tableProbe{conn: conn}
	_, p.why = conn.Exec(ctx, `CREATE EXTENSION IF NOT EXISTS pgstattuple`)
	var pgErr *pgconn.PgError
	if p.pgstattuple = p.why == nil; !p.pgstattuple && !errors.As(p.why, &pgErr) {
		return nil, errors.Join(p.why, conn.Close(ctx))
	}
	return p, nil
}

// tableColumns are what look finds, for each of the tables.
func tableColumns() []TimelineColumn {
	out := []TimelineColumn{{"xids", "", ""}}
	for _, t := range watchedTables {
		kind := Shape
		if t == "heads" {
			kind = ""
		}
		out = append(out,
			TimelineColumn{t + " heap", "MiB", kind}, TimelineColumn{t + " index", "MiB", kind},
			TimelineColumn{t + " live tuples", "", ""}, TimelineColumn{t + " dead tuples", "", kind},
			TimelineColumn{t + " updates", "", ""}, TimelineColumn{t + " HOT updates", "", ""},
			TimelineColumn{t + " autovacuums", "", ""}, TimelineColumn{t + " xid age", "", ""},
			TimelineColumn{t + " leaf density", "%", ""}, TimelineColumn{t + " leaf fragmentation", "%", ""})
	}
	return out
}

const tablesSQL = `
	SELECT relname, pg_relation_size(oid), pg_indexes_size(oid), pg_stat_get_live_tuples(oid), pg_stat_get_dead_tuples(oid),
	       pg_stat_get_tuples_updated(oid), pg_stat_get_tuples_hot_updated(oid), pg_stat_get_autovacuum_count(oid), age(relfrozenxid)::bigint,
	       pg_snapshot_xmax(pg_current_snapshot())::text::bigint
	FROM pg_class WHERE relnamespace = 'waybill'::regnamespace AND relname = ANY ($1)`

// mib is bytes in MiB.
func mib(bytes int64) float64 { return float64(bytes) / (1 << 20) }

// look returns what the tables are like. The indexes' pages are read for a tenth of the time at most,
// or now, where that is wanted.
func (p *tableProbe) look(ctx context.Context, indexes bool) (map[string]float64, error) {
	rows, err := p.conn.Query(ctx, tablesSQL, watchedTables)
	if err != nil {
		return nil, fmt.Errorf("look at the tables: %w", err)
	}
	out := map[string]float64{}
	var name string
	var heap, index, live, dead, updated, hot, vacuums, age, xids int64
	_, err = pgx.ForEachRow(rows, []any{&name, &heap, &index, &live, &dead, &updated, &hot, &vacuums, &age, &xids}, func() error {
		out[name+" heap"], out[name+" index"] = mib(heap), mib(index)
		out[name+" live tuples"], out[name+" dead tuples"] = float64(live), float64(dead)
		out[name+" updates"], out[name+" HOT updates"] = float64(updated), float64(hot)
		out[name+" autovacuums"], out[name+" xid age"] = float64(vacuums), float64(age)
		out["xids"] = float64(xids)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look at the tables: %w", err)
	}
	if began := time.Now(); p.pgstattuple && (indexes || began.After(p.indexLook)) {
		for _, t := range watchedTables {
			var density, fragmentation float64
			// Of an index without a leaf they are no numbers.
			err := p.conn.QueryRow(ctx, `SELECT coalesce(nullif(avg_leaf_density, 'NaN'), 0), coalesce(nullif(leaf_fragmentation, 'NaN'), 0)
				FROM pgstatindex($1::regclass)`, "waybill."+t+"_pkey").Scan(&density, &fragmentation)
			if err != nil {
				return nil, fmt.Errorf("look at the index of %s: %w", t, err)
			}
			out[t+" leaf density"], out[t+" leaf fragmentation"] = density, fragmentation
		}
		p.indexLook = time.Now().Add((surveyShare - 1) * time.Since(began))
	}
	return out, nil
}

// freeSpace is the percentage of a table's heap that is free, or, where pgstattuple is not there, nothing.
func (p *tableProbe) freeSpace(ctx context.Context, table string) (percent float64, known bool, err error) {
	if !p.pgstattuple {
		return 0, false, nil
	}
	err = p.conn.QueryRow(ctx, `SELECT free_percent FROM pgstattuple($1::regclass)`, "waybill."+table).Scan(&percent)
	return percent, err == nil, err
}

// reindex builds the index of a table anew beside the work on it, and returns the size before and
// after, and how long it took.
func (p *tableProbe) reindex(ctx context.Context, table string) (before, after int64, took time.Duration, err error) {
	index := "waybill." + table + "_pkey"
	const size = `SELECT pg_relation_size($1::regclass)`
	if err := p.conn.QueryRow(ctx, size, index).Scan(&before); err != nil {
		return 0, 0, 0, fmt.Errorf("size of %s: %w", index, err)
	}
	began := time.Now()
	if err := execAll(ctx, p.conn, "build "+index+" anew", "REINDEX INDEX CONCURRENTLY "+index); err != nil {
		return 0, 0, 0, err
	}
	took = time.Since(began)
	if err := p.conn.QueryRow(ctx, size, index).Scan(&after); err != nil {
		return 0, 0, 0, fmt.Errorf("size of %s: %w", index, err)
	}
	return before, after, took, nil
}

// firstLine is an error without its details.
func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}
