package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/test/faults/audit"
)

// evidence is what a run left behind.
type evidence struct {
	audit.Evidence
	archive error // reading it back
	left    int   // rows in events that belong to no batch, or to one that is not settled

	retransmittedBatches, retransmittedEvents int
}

// readPostgres reads what Postgres knows. It may be called again after an error.
func (e *evidence) readPostgres(ctx context.Context, conn *pgx.Conn) error {
	e.Heads, e.Letters = nil, nil
	e.retransmittedBatches, e.retransmittedEvents = 0, 0
	var h audit.Head
	if err := each(ctx, conn, `SELECT source, type, seqnum FROM waybill.key_heads`,
		[]any{&h.Source, &h.Type, &h.Seqnum}, func() { e.Heads = append(e.Heads, h) }); err != nil {
		return err
	}
	var l audit.Letter
	if err := each(ctx, conn, `SELECT sink, code, source, type, event_id, seqnum, position FROM waybill.dead_letters`,
		[]any{&l.Sink, &l.Code, &l.Source, &l.Type, &l.ID, &l.Seqnum, &l.Position}, func() { e.Letters = append(e.Letters, l) }); err != nil {
		return err
	}
	var batch int64
	var events int
	if err := each(ctx, conn, `SELECT batch, events FROM public.retransmits`, []any{&batch, &events}, func() {
		e.Retransmitted[batch] = true
		e.retransmittedBatches++
		e.retransmittedEvents += events
	}); err != nil {
		return err
	}
	return conn.QueryRow(ctx, `SELECT count(*) FROM waybill.events`).Scan(&e.left)
}

// each calls visit for every row, after scanning it.
func each(ctx context.Context, conn *pgx.Conn, sql string, scan []any, visit func()) error {
	rows, err := conn.Query(ctx, sql)
	if err != nil {
		return fmt.Errorf("read back from Postgres: %w", err)
	}
	_, err = pgx.ForEachRow(rows, scan, func() error { visit(); return nil })
	if err != nil {
		return fmt.Errorf("read back from Postgres: %w", err)
	}
	return nil
}
