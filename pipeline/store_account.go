package pipeline

import (
	"context"
	_ "embed"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

//go:embed sql/account_waiting.sql
var accountWaitingSQL string

// Key is the unit of order: the events of a source and a type.
type Key struct{ Source, Type string }

// WaitingEvent is an event that some sinks have not taken yet.
type WaitingEvent struct {
	Key
	Seqnum     int64
	AcceptedAt time.Time
	Sinks      []string // that it waits for
}

// LetterMark is what an account needs of a dead letter.
type LetterMark struct {
	Key
	Seqnum     int64
	AcceptedAt time.Time
	Sink       string
	State      LetterState
}

// SinkSince is a sink, and since when events must reach it.
type SinkSince struct {
	Name  string
	Since time.Time
	// FromTheStart says that it was made with the pipeline: every event ever accepted had to reach it.
	FromTheStart bool
}

// Account is told all that one snapshot of Postgres knows of the events ever accepted. Its functions
// are called one after another: Sinks, then Head for each key, then Waiting, then Letter.
type Account struct {
	// Sinks is told all sinks, in the order of their names.
	Sinks func([]SinkSince) error
	// Head is told the last seqnum of a key.
	Head func(k Key, last int64) error
	// Waiting is told each event that waits, in the order of batches.
	Waiting func(WaitingEvent) error
	// Gone is told of a batch that waits and of whose events rows are missing: how many.
	Gone func(batch int64, events int, sinks []string) error
	// Letter is told each dead letter.
	Letter func(LetterMark) error
}

// ReadAccount tells the account, and returns the time of the snapshot by Postgres's clock. It reads tables
// whole, for as long as that takes: what is updated meanwhile keeps its old rows.
func (s *Store) ReadAccount(ctx context.Context, account Account) (now time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, accountTimeout)
	defer cancel()
	err = pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if err := forLongReads(ctx, tx); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, `SELECT now()`).Scan(&now); err != nil {
			return err
		}
		sinks, err := readSinksSince(ctx, tx)
		if err == nil {
			err = account.Sinks(sinks)
		}
		if err != nil {
			return err
		}
		if err := readHeads(ctx, tx, account.Head); err != nil {
			return err
		}
		if err := readWaiting(ctx, tx, account); err != nil {
			return err
		}
		return readLetterMarks(ctx, tx, account.Letter)
	})
	if err != nil {
		return time.Time{}, fmt.Errorf("read what Postgres knows of: %w", err)
	}
	return now, nil
}

// accountTimeout bounds a read of everything.
const accountTimeout = time.Hour

// forLongReads lets a transaction's statements read tables whole, and take their time.
func forLongReads(ctx context.Context, tx pgx.Tx) error {
	for name, value := range map[string]string{
		"statement_timeout": millis(accountTimeout), "idle_in_transaction_session_timeout": millis(time.Minute),
		"enable_seqscan": "on", "enable_hashjoin": "on", "enable_mergejoin": "on",
	} {
		if _, err := tx.Exec(ctx, `SELECT set_config($1, $2, true)`, name, value); err != nil {
			return err
		}
	}
	return nil
}

// madeWithThePipeline is how much later than the pipeline a sink may be made to count as made with it:
// one command makes both.
const madeWithThePipeline = "1 minute"

func readSinksSince(ctx context.Context, tx pgx.Tx) ([]SinkSince, error) {
	rows, err := tx.Query(ctx, `
		SELECT s.name, s.created_at, s.created_at <= p.created_at + $1::text::interval
		FROM waybill.sinks s, waybill.pipeline p ORDER BY s.name`, madeWithThePipeline)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[SinkSince])
}

func readHeads(ctx context.Context, tx pgx.Tx, visit func(Key, int64) error) error {
	rows, err := tx.Query(ctx, `SELECT source, type, seqnum FROM waybill.key_heads`)
	if err != nil {
		return err
	}
	var k Key
	var last int64
	_, err = pgx.ForEachRow(rows, []any{&k.Source, &k.Type, &last}, func() error { return visit(k, last) })
	return err
}

// ReadHeads tells the last seqnum of every key.
func (s *Store) ReadHeads(ctx context.Context, visit func(Key, int64) error) error {
	ctx, cancel := context.WithTimeout(ctx, accountTimeout)
	defer cancel()
	err := pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if err := forLongReads(ctx, tx); err != nil {
			return err
		}
		return readHeads(ctx, tx, visit)
	})
	if err != nil {
		return fmt.Errorf("read the heads: %w", err)
	}
	return nil
}

func readWaiting(ctx context.Context, tx pgx.Tx, account Account) error {
	rows, err := tx.Query(ctx, accountWaitingSQL)
	if err != nil {
		return err
	}
	var batch, before int64
	var events, left int16 // of the batch before: rows that are still to come
	var accepted time.Time
	var sinks, beforeSinks []string
	var source, typ *string
	var seqnum *int64
	gone := func() error {
		if left == 0 {
			return nil
		}
		return account.Gone(before, int(left), beforeSinks)
	}
	_, err = pgx.ForEachRow(rows, []any{&batch, &events, &accepted, &sinks, &source, &typ, &seqnum}, func() error {
		if batch != before {
			if err := gone(); err != nil {
				return err
			}
			before, left, beforeSinks = batch, events, sinks
		}
		if source == nil {
			return nil
		}
		left--
		return account.Waiting(WaitingEvent{Key: Key{*source, *typ}, Seqnum: *seqnum, AcceptedAt: accepted, Sinks: sinks})
	})
	if err != nil {
		return err
	}
	return gone()
}

func readLetterMarks(ctx context.Context, tx pgx.Tx, visit func(LetterMark) error) error {
	rows, err := tx.Query(ctx, `
		SELECT source, type, seqnum, accepted_at, sink, requeued_at IS NOT NULL, delivered_late_at IS NOT NULL
		FROM waybill.dead_letters`)
	if err != nil {
		return err
	}
	var m LetterMark
	var requeued, late bool
	_, err = pgx.ForEachRow(rows, []any{&m.Source, &m.Type, &m.Seqnum, &m.AcceptedAt, &m.Sink, &requeued, &late}, func() error {
		switch {
		case requeued:
			m.State = LetterRequeued
		case late:
			m.State = LetterLate
		default:
			m.State = LetterDead
		}
		return visit(m)
	})
	return err
}
