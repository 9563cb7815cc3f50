package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/errgroup"
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
	err := poll(ctx, startLimit, "Postgres takes a connection", func(ctx context.Context) error {
		conn, err := pgx.Connect(ctx, f.s.stack.DatabaseURL)
		f.conn = conn
		return err
	})
	if err != nil {
		return err
	}
	for _, statement := range []string{f.begin, f.statement} {
		if _, err := f.conn.Exec(ctx, statement); err != nil {
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
	s *system

	mu   sync.Mutex // guards held
	held []*pgx.Conn
}

// connecting is how many connections are made at once: each costs the server some work.
const connecting = 8

func (f *exhaust) inject(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for range connecting {
		group.Go(func() error {
			for {
				conn, err := pgx.Connect(ctx, f.s.stack.DatabaseURL)
				if isTooMany(err) {
					return nil
				}
				if err != nil {
					return fmt.Errorf("take a connection: %w", err)
				}
				f.mu.Lock()
				f.held = append(f.held, conn)
				f.mu.Unlock()
			}
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return f.turnAway(context.WithoutCancel(ctx))
}

// turnAway lets some processes lose their connections, and takes these.
func (f *exhaust) turnAway(ctx context.Context) error {
	if len(f.held) == 0 {
		return errors.New("there was no connection to take")
	}
	_, err := f.held[0].Exec(ctx, `SELECT pg_terminate_backend(pid) FROM (
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
