package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/internal/devstack"
	"github.com/waybillhq/waybill/pipeline"
)

// templateDatabase is migrated once; the others are copies of it.
const templateDatabase = "waybill_template"

// database is a Postgres server of a scenario's own, durable and with the settings of
// `waybill dev`'s, without the rest of a system.
type database struct {
	bench  *Bench
	server *devstack.Postgres
	// kept is the size, in bytes, up to which a database stays until the server goes.
	kept int64
}

// withPostgres starts a server for a scenario that measures the store alone, lets f use it, and
// removes it. settings, which may be nil, are further ones of the server.
func (b *Bench) withPostgres(ctx context.Context, settings map[string]string, f func(*database) error) (err error) {
	b.live("starting Postgres")
	dir, err := os.MkdirTemp("", "waybill-bench-")
	if err != nil {
		return fmt.Errorf("scratch directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	// Postgres may run as another user, who must be able to pass through.
	if err := os.Chmod(dir, 0o755); err != nil {
		return fmt.Errorf("scratch directory: %w", err)
	}
	options := devstack.DefaultPostgresOptions(filepath.Join(dir, "postgres"))
	for name, value := range settings {
		options.Settings[name] = value
	}
	options.Database = templateDatabase
	d := &database{bench: b, kept: keptBytes}
	if d.server, err = devstack.StartPostgres(ctx, options); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.server.Remove()) }()
	if err := pipeline.Migrate(ctx, d.server.URL(templateDatabase), pipeline.DefaultSpec()); err != nil {
		return err
	}
	conn, err := d.connect(ctx, "postgres")
	if err != nil {
		return err
	}
	err = errors.Join(noteVersion(ctx, b.report, conn), conn.Close(ctx))
	if err != nil {
		return err
	}
	return f(d)
}

// keptBytes is database.kept unless a scenario says so: a drop is a checkpoint, which takes longer than
// a small database is worth.
const keptBytes = 256 << 20

// with makes a database with Waybill's tables, lets f use it, and drops it if it is large.
func (d *database) with(ctx context.Context, name string, f func(url string) error) error {
	admin, err := d.connect(ctx, "postgres")
	if err != nil {
		return err
	}
	defer func() { _ = admin.Close(context.WithoutCancel(ctx)) }() // everything was answered
	quoted := pgx.Identifier{name}.Sanitize()
	if _, err := admin.Exec(ctx, "CREATE DATABASE "+quoted+" TEMPLATE "+templateDatabase); err != nil {
		return fmt.Errorf("make the database %s: %w", name, err)
	}
	if err := f(d.server.URL(name)); err != nil || ctx.Err() != nil {
		return errors.Join(err, ctx.Err()) // the server goes, and the database with it
	}
	var bytes int64
	if err := admin.QueryRow(ctx, `SELECT pg_database_size($1)`, name).Scan(&bytes); err != nil {
		return fmt.Errorf("size of the database %s: %w", name, err)
	}
	if bytes <= d.kept {
		return nil
	}
	return execAll(ctx, admin, "drop the database "+name, "DROP DATABASE "+quoted+" WITH (FORCE)")
}

func (d *database) connect(ctx context.Context, name string) (*pgx.Conn, error) {
	return connectTo(ctx, d.server.URL(name))
}

// connectTo opens a connection for measuring; the caller closes it.
func connectTo(ctx context.Context, url string) (*pgx.Conn, error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return nil, fmt.Errorf("connect to Postgres for measuring: %w", err)
	}
	return conn, nil
}

// sessionsEnd bounds the wait for sessions whose connections are closed.
const sessionsEnd = 10 * time.Second

// awaitSessions waits until the store's sessions have ended: only then are their statistics complete.
func awaitSessions(ctx context.Context, conn *pgx.Conn) error {
	for deadline := time.Now().Add(sessionsEnd); ; pause(ctx, 10*time.Millisecond) {
		var left bool
		err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'waybill')`).Scan(&left)
		switch {
		case err != nil:
			return fmt.Errorf("wait for sessions to end: %w", err)
		case !left:
			return nil
		case time.Now().After(deadline):
			return fmt.Errorf("sessions of the store are still there after %v", sessionsEnd)
		}
	}
}

// execAll runs statements without parameters, one after another.
func execAll(ctx context.Context, conn *pgx.Conn, what string, statements ...string) error {
	for _, sql := range statements {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	return nil
}
