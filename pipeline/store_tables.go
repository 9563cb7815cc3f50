package pipeline

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// TableHealth is what Postgres's statistics say of one of Waybill's tables. The counts are since
// these were last reset.
type TableHealth struct {
	Table                               string
	Live, Dead                          int64 // rows, estimated
	Inserted, Updated, UpdatedHot, Gone int64 // rows; Gone: deleted
	Bytes                               int64 // with indexes and TOAST
	Vacuumed                            bool  // it ever was
	SinceVacuum                         time.Duration
}

// Tables reads the health of the tables. It looks at statistics and file sizes only.
func (s *Store) Tables(ctx context.Context) (tables []TableHealth, err error) {
	defer s.metrics.time("tables")(&err)
	rows, err := s.pool.Query(ctx, `
		SELECT relname, n_live_tup, n_dead_tup, n_tup_ins, n_tup_upd, n_tup_hot_upd, n_tup_del,
		       extract(epoch FROM now() - greatest(last_vacuum, last_autovacuum))::float8, pg_total_relation_size(relid)
		FROM pg_stat_user_tables WHERE schemaname = 'waybill' ORDER BY relname`)
	if err != nil {
		return nil, fmt.Errorf("read the health of the tables: %w", err)
	}
	tables, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (t TableHealth, err error) {
		var since *float64
		var bytes *int64 // of a table that is dropped meanwhile there is none
		err = row.Scan(&t.Table, &t.Live, &t.Dead, &t.Inserted, &t.Updated, &t.UpdatedHot, &t.Gone, &since, &bytes)
		if since != nil {
			t.Vacuumed, t.SinceVacuum = true, time.Duration(*since*float64(time.Second))
		}
		if bytes != nil {
			t.Bytes = *bytes
		}
		return t, err
	})
	if err != nil {
		return nil, fmt.Errorf("read the health of the tables: %w", err)
	}
	return tables, nil
}
