package pipeline

import (
	"context"
	"errors"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// observeTables exports the health of the tables as the janitor read it last.
func observeTables(m metric.Meter, j *Janitor) error {
	var errs [5]error
	var rows, dead, size metric.Int64ObservableGauge
	var written metric.Int64ObservableCounter
	var vacuum metric.Float64ObservableGauge
	rows, errs[0] = m.Int64ObservableGauge("waybill.table.rows", metric.WithUnit("{row}"), metric.WithDescription("Live rows of a table, as Postgres estimates them"))
	dead, errs[1] = m.Int64ObservableGauge("waybill.table.dead_rows", metric.WithUnit("{row}"), metric.WithDescription("Dead rows of a table, which a vacuum has to remove, as Postgres estimates them"))
	size, errs[2] = m.Int64ObservableGauge("waybill.table.size", metric.WithUnit("By"), metric.WithDescription("Size of a table on disk, with its indexes"))
	written, errs[3] = m.Int64ObservableCounter("waybill.table.writes", metric.WithUnit("{row}"), metric.WithDescription("Rows written to a table, by operation: insert, update, hot_update (of the updates, those that touched no index), delete"))
	vacuum, errs[4] = m.Float64ObservableGauge("waybill.table.vacuum_age", metric.WithUnit("s"), metric.WithDescription("Time since a table was last vacuumed, by anybody; there is none before the first time"))
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	_, err := m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		for _, t := range j.tableHealth() {
			table := attribute.String("table", t.Table)
			of := metric.WithAttributes(table)
			o.ObserveInt64(rows, t.Live, of)
			o.ObserveInt64(dead, t.Dead, of)
			o.ObserveInt64(size, t.Bytes, of)
			for operation, n := range map[string]int64{"insert": t.Inserted, "update": t.Updated, "hot_update": t.UpdatedHot, "delete": t.Gone} {
				o.ObserveInt64(written, n, metric.WithAttributes(table, attribute.String("operation", operation)))
			}
			if t.Vacuumed {
				o.ObserveFloat64(vacuum, t.SinceVacuum.Seconds(), of)
			}
		}
		return nil
	}, rows, dead, size, written, vacuum)
	return err
}
