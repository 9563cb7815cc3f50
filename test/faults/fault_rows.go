package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/test/faults/audit"
)

// damageRows spoils rows of events that wait for the endpoint, and deletes the stream, so that
// nothing but these rows is left of them. The endpoint is down meanwhile.
type damageRows struct {
	s       *system
	lost    map[int64]audit.Letter // deleted rows, by position
	phantom map[int64]bool         // positions that never were
	letters int
}

// damagedBatches is how many batches are damaged, and a third of them in each way.
const damagedBatches = 12

func (f *damageRows) inject(ctx context.Context) error {
	err := poll(ctx, startLimit, "enough batches wait for the endpoint", func(ctx context.Context) error {
		return f.s.untilPostgres(ctx, f.damage)
	})
	if err != nil {
		return err
	}
	return (&deleteStream{f.s, pipeline.EventsStream}).inject(ctx)
}

// damage is one transaction.
func (f *damageRows) damage(ctx context.Context, conn *pgx.Conn) error {
	f.lost, f.phantom = map[int64]audit.Letter{}, map[int64]bool{}
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `
			SELECT batch, events FROM waybill.batches
			WHERE 'ingress' = ANY (waiting_for) AND origin_position IS NULL
			ORDER BY batch DESC LIMIT $1 FOR UPDATE`, damagedBatches)
		if err != nil {
			return err
		}
		type batch struct{ Number, Events int64 }
		all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[batch])
		if err == nil && len(all) < damagedBatches {
			err = fmt.Errorf("%d wait", len(all))
		}
		if err != nil {
			return err
		}
		for i, b := range all {
			position := pipeline.Position(b.Number, int(b.Events)/2)
			switch i % 3 {
			case 0:
				_, err = tx.Exec(ctx, `UPDATE waybill.events SET event = '\xff'::bytea || event WHERE position = $1`, position)
			case 1:
				l := audit.Letter{Position: position}
				err = tx.QueryRow(ctx, `DELETE FROM waybill.events WHERE position = $1 RETURNING source, type, event_id, seqnum`,
					position).Scan(&l.Source, &l.Type, &l.ID, &l.Seqnum)
				f.lost[position] = l
			default:
				f.phantom[pipeline.Position(b.Number, int(b.Events))] = true
				_, err = tx.Exec(ctx, `UPDATE waybill.batches SET events = events + 1 WHERE batch = $1`, b.Number)
			}
			if err != nil {
				return fmt.Errorf("damage batch %d: %w", b.Number, err)
			}
		}
		return nil
	})
}

func (f *damageRows) heal(ctx context.Context) error {
	return f.s.untilPostgres(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `SELECT count(*) FROM waybill.dead_letters WHERE code = $1`, pipeline.CodeDamaged).Scan(&f.letters)
	})
}

func (f *damageRows) proof() (int, string) { return f.letters, "dead letters of damaged rows" }

// testify gives the dead letters of deleted rows the names that only this fault knows, and takes
// those of events that never were away.
func (f *damageRows) testify(e *evidence) {
	var letters []audit.Letter
	for _, l := range e.Letters {
		known, lost := f.lost[l.Position]
		switch {
		case l.ID != "":
		case lost:
			l.Source, l.Type, l.ID, l.Seqnum = known.Source, known.Type, known.ID, known.Seqnum
		case f.phantom[l.Position]:
			continue
		}
		letters = append(letters, l)
	}
	e.Letters = letters
}
