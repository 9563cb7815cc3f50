package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// killBackends ends the processes that serve connections.
type killBackends struct{ s *system }

func (f *killBackends) inject(ctx context.Context) error { return f.terminate(ctx) }

// heal does it again: those are younger.
func (f *killBackends) heal(ctx context.Context) error { return f.terminate(ctx) }

func (f *killBackends) terminate(ctx context.Context) error {
	return f.s.exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'waybill'`)
}

// holdTransaction keeps a transaction open after a statement.
type holdTransaction struct {
	s                *system
	begin, statement string
	conn             *pgx.Conn
}

func (f *holdTransaction) inject(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, f.s.stack.DatabaseURL)
	if err != nil {
		return fmt.Errorf("connect to Postgres: %w", err)
	}
	f.conn = conn
	for _, statement := range []string{f.begin, f.statement} {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("hold a transaction: %w", err)
		}
	}
	return nil
}

func (f *holdTransaction) heal(ctx context.Context) error {
	if f.conn == nil {
		return nil
	}
	_ = f.conn.Close(ctx) // which ends the transaction; Postgres may be away
	return nil
}

// isTooMany recognizes a server without room for a connection.
func isTooMany(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == "53300"
}

// exhaust takes all connections that are left.
type exhaust struct {
	s    *system
	held []*pgx.Conn
}

// maxConnections is above the server's own limit.
const maxConnections = 1000

func (f *exhaust) inject(ctx context.Context) error {
	for range maxConnections {
		conn, err := pgx.Connect(ctx, f.s.stack.DatabaseURL)
		if err != nil {
			return f.full(ctx, err)
		}
		f.held = append(f.held, conn)
	}
	return errors.New("the server's connections are without limit")
}

// full turns away whoever connects from now on as well: some lose their connection, and
// the harness takes it.
func (f *exhaust) full(ctx context.Context, err error) error {
	if !isTooMany(err) || len(f.held) == 0 {
		return fmt.Errorf("take a connection: %w", err)
	}
	_, err = f.held[0].Exec(ctx, `SELECT pg_terminate_backend(pid) FROM (
		SELECT pid FROM pg_stat_activity WHERE application_name = 'waybill' LIMIT 8) AS victims`)
	if err != nil {
		return fmt.Errorf("end some connections: %w", err)
	}
	for range 8 {
		if conn, err := pgx.Connect(ctx, f.s.stack.DatabaseURL); err == nil {
			f.held = append(f.held, conn)
		}
	}
	return nil
}

func (f *exhaust) heal(ctx context.Context) error {
	for _, conn := range f.held {
		_ = conn.Close(ctx) // it may be gone already
	}
	return nil
}

// setBack sets the sequence of batch numbers back, as a restore does: what is stored with
// the next numbers is in the way, and later ones were used before.
type setBack struct{ s *system }

func (f *setBack) inject(ctx context.Context) error {
	return f.s.exec(ctx, `SELECT setval('waybill.batch_numbers', greatest(1, last_value - 200)) FROM waybill.batch_numbers`)
}

func (f *setBack) heal(context.Context) error { return nil }
