package pipeline

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/metric"
)

// StoreConfig says how a process uses Postgres.
type StoreConfig struct {
	// URL is a Postgres connection string (postgres://user:password@host/database).
	URL string
	// MaxConns bounds the connections of this process.
	MaxConns int
	// LockTimeout bounds the wait for a row, StatementTimeout a statement and
	// IdleInTransactionTimeout a stalled transaction: seconds, so that a stalled process
	// cannot hold the rows of a key.
	LockTimeout              time.Duration
	StatementTimeout         time.Duration
	IdleInTransactionTimeout time.Duration
	// KeepPlans is for a process that appends. Its statements have one good plan each, by an
	// index, whatever the parameters: each connection makes it once, where making it anew takes
	// longer than executing it.
	KeepPlans bool
	// Meter makes the store's instruments; nil records nothing.
	Meter metric.Meter
}

// DefaultStoreConfig returns the settings of a process with the given database.
func DefaultStoreConfig(url string) StoreConfig {
	return StoreConfig{
		URL: url, MaxConns: 8,
		LockTimeout: 3 * time.Second, StatementTimeout: 10 * time.Second,
		IdleInTransactionTimeout: 5 * time.Second,
	}
}

// Validate names the first setting that cannot work.
func (c StoreConfig) Validate() error {
	switch {
	case c.URL == "":
		return errors.New("database url: is empty; give a connection string such as postgres://user@host/db")
	case c.MaxConns < 1:
		return fmt.Errorf("database conns: %d; want at least 1", c.MaxConns)
	case c.LockTimeout <= 0 || c.StatementTimeout <= 0 || c.IdleInTransactionTimeout <= 0:
		return errors.New("database timeouts: each must be positive; an unbounded one could hold a key's rows for ever")
	}
	return nil
}

// Store is Waybill's part of a Postgres database, the system of record. It is safe for
// concurrent use.
type Store struct {
	pool    *pgxpool.Pool
	keys    *knownKeys
	metrics *storeMetrics
	// As OpenStore found them in the pipeline's row.
	lanes  int
	grace  time.Duration
	dedupe time.Duration

	database string // its identity; empty: not known
}

// OpenStore connects to a migrated database and checks that it is one: the error says
// what to do when it is not: it is ErrNotMigrated where `waybill migrate` would help, and
// ErrUnavailable when Postgres does not answer. wantLanes is the number of lanes the process is
// configured for; 0: whatever the pipeline has.
func OpenStore(ctx context.Context, cfg StoreConfig, wantLanes int) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	pool, err := newPool(ctx, cfg)
	if err != nil {
		return nil, err
	}
	s := &Store{pool: pool, keys: newKnownKeys()}
	if err := s.check(ctx, wantLanes); err != nil {
		pool.Close()
		return nil, err
	}
	// Last, since what was registered stays: a process tries until Postgres is there.
	if s.metrics, err = newStoreMetrics(cfg.Meter, pool); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func newPool(ctx context.Context, cfg StoreConfig) (*pgxpool.Pool, error) {
	pc, err := pgxpool.ParseConfig(cfg.URL)
	if err != nil {
		// The parser's own message may hold the password.
		return nil, errors.New("database url: cannot be parsed; want postgres://user:password@host:port/database")
	}
	pc.MaxConns = int32(cfg.MaxConns)
	pc.ConnConfig.ConnectTimeout = cfg.LockTimeout
	for name, value := range cfg.Session() {
		if _, set := pc.ConnConfig.RuntimeParams[name]; !set || name == "synchronous_commit" || name == "default_transaction_isolation" {
			pc.ConnConfig.RuntimeParams[name] = value
		}
	}
	pool, err := pgxpool.NewWithConfig(ctx, pc)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	return pool, nil
}

// Session returns the settings of a connection's session, by which its statements are planned
// and bounded. The URL may say otherwise, but for synchronous_commit and the isolation.
func (c StoreConfig) Session() map[string]string {
	settings := map[string]string{
		// Accepted means committed, whatever the database's own default is.
		"synchronous_commit": "on",
		// What waits for a lock goes on with what the one before has left.
		"default_transaction_isolation":       "read committed",
		"lock_timeout":                        millis(c.LockTimeout),
		"statement_timeout":                   millis(c.StatementTimeout),
		"idle_in_transaction_session_timeout": millis(c.IdleInTransactionTimeout),
		"tcp_user_timeout":                    millis(c.IdleInTransactionTimeout),
		"timezone":                            "UTC",
		// Every lookup goes by primary key from a short list. With statistics from an
		// empty table the planner may think a scan cheaper, keep that plan, and be wrong
		// by a factor of a million (peers fell over this).
		"enable_seqscan":   "off",
		"enable_hashjoin":  "off",
		"enable_mergejoin": "off",
		"jit":              "off",
		"application_name": "waybill",
	}
	if c.KeepPlans {
		settings["plan_cache_mode"] = "force_generic_plan"
		settings["enable_bitmapscan"] = "off" // it takes longer to begin
	}
	return settings
}

func millis(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

// closeTimeout bounds Close: saying goodbye to a server that does not answer takes 15 s and
// more, and a process that is to stop has no such time.
const closeTimeout = 2 * time.Second

// Close ends the store's connections. Those whose server does not answer end behind it.
func (s *Store) Close() {
	closed := make(chan struct{})
	go func() { defer close(closed); s.pool.Close() }()
	timer := time.NewTimer(closeTimeout)
	defer timer.Stop()
	select {
	case <-closed:
	case <-timer.C:
	}
}

// Lanes is the number of lanes of the pipeline.
func (s *Store) Lanes() int { return s.lanes }

// Grace is the pipeline's grace period.
func (s *Store) Grace() time.Duration { return s.grace }

// DedupeWindow is how long the pipeline remembers what it accepted; 0: not at all.
func (s *Store) DedupeWindow() time.Duration { return s.dedupe }

// Ping reports whether Postgres answers.
func (s *Store) Ping(ctx context.Context) error { return s.pool.Ping(ctx) }

// check compares the database with what this build and this configuration need.
func (s *Store) check(ctx context.Context, wantLanes int) error {
	var version int64
	err := s.pool.QueryRow(ctx, `SELECT coalesce(max(version_id), 0) FROM waybill.goose_db_version WHERE is_applied`).Scan(&version)
	var pgErr *pgconn.PgError
	switch {
	case errors.As(err, &pgErr) && (pgErr.Code == "42P01" || pgErr.Code == "3F000"):
		return fmt.Errorf("%w: it has no Waybill tables; run `waybill migrate` on it first", ErrNotMigrated)
	case err != nil:
		return readError("check the database", err)
	}
	want, err := LatestMigration()
	if err != nil {
		return err
	}
	if version < want {
		return fmt.Errorf("%w: it is at migration %d and this build needs %d; run `waybill migrate`", ErrNotMigrated, version, want)
	}
	err = s.pool.QueryRow(ctx, `SELECT lanes, grace, dedupe_window FROM waybill.pipeline`).Scan(&s.lanes, &s.grace, &s.dedupe)
	if errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("%w: the pipeline was not created; run `waybill migrate`", ErrNotMigrated)
	}
	if err != nil {
		return readError("read the pipeline", err)
	}
	if wantLanes != 0 && s.lanes != wantLanes {
		return fmt.Errorf("the pipeline has %d lanes and this process is configured for %d; set WAYBILL_LANES=%d (the number is fixed when a pipeline is created)", s.lanes, wantLanes, s.lanes)
	}
	return s.identify(ctx)
}

// identify reads which database this is. A role that may not know it goes without.
func (s *Store) identify(ctx context.Context) error {
	err := s.pool.QueryRow(ctx, `
		SELECT c.system_identifier::text || '/' || d.oid::text
		FROM pg_control_system() AS c, pg_database AS d WHERE d.datname = current_database()`).Scan(&s.database)
	if err == nil {
		return nil
	}
	if err = readError("identify the database", err); errors.Is(err, ErrUnavailable) {
		return err
	}
	return nil
}

// Database is the identity of the database, whatever its address: the same for two stores on
// one, or on a standby of it, and another for all others. Empty: not known.
func (s *Store) Database() string { return s.database }

// readError is the error of a read: ErrUnavailable where trying again may help, because the
// connection broke, or the server starts, stops or has too many connections.
func readError(what string, err error) error {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code[:2] == "57" || pgErr.Code[:2] == "53" {
		return fmt.Errorf("%w: %s: %w", ErrUnavailable, what, err)
	}
	if pgErr.Code == "42501" {
		return fmt.Errorf("%s: %w; grant the role what docs/operations.md names under \"Settings that must agree\"", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// isLockTimeout reports that a lock was not to be had in time.
func isLockTimeout(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == "55P03"
}

// isStatementTimeout reports that Postgres has ended a statement because it took too long.
func isStatementTimeout(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == "57014"
}

// classify turns an error of a transaction that was not known to commit into one of the
// errors of Accept. committing says that the commit may have been under way.
func classify(err error, committing bool) error {
	var pgErr *pgconn.PgError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &pgErr) && pgErr.SeverityUnlocalized == "ERROR":
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	case !committing || (pgconn.SafeToRetry(err) && !errors.Is(err, pgconn.ErrConnClosed)):
		// A closed connection says nothing: pgx calls it so, and safe to retry, also where
		// it closed because the answer to what was sent never came (MultiResultReader reads
		// on after the read that failed).
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	default:
		// The connection broke, or the server was shut down, after the commit was sent.
		return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	}
}
