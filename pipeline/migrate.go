package pipeline

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"github.com/waybillhq/waybill/schemas/postgres"
)

// Spec is what is decided when a pipeline is created.
type Spec struct {
	// Lanes is fixed from then on.
	Lanes int
	// Sinks that events must reach. Migrate adds those that are missing, which makes them
	// required for events accepted from then on; it removes none.
	Sinks []string
	// Grace is the period of which a publish may use half, and after which a batch that is
	// no longer queued is stale. Processes read it at start.
	Grace time.Duration
	// DedupeWindow is how long an event that was accepted is remembered, so that it is not
	// stored again: 0, not at all, or one second to one day. Processes read it at start.
	DedupeWindow time.Duration
	// Kept are the values above that are for a new pipeline only: one that there is keeps its own.
	Kept Kept
}

// Kept names values of a Spec.
type Kept struct{ Sinks, Grace, DedupeWindow bool }

// DefaultGrace is the grace period of a pipeline unless it is created otherwise.
const DefaultGrace = 10 * time.Second

// DefaultSpec returns 16 lanes, both sinks, ten seconds of grace and ten minutes in which an
// event is not stored again.
func DefaultSpec() Spec {
	return Spec{
		Lanes: DefaultLanes, Sinks: []string{"ingress", "archive"}, Grace: DefaultGrace,
		DedupeWindow: DefaultDedupeWindow,
	}
}

var sinkName = regexp.MustCompile(`^[a-z][a-z0-9_]{0,31}$`)

// Validate names the first part of the spec that cannot work.
func (s Spec) Validate() error {
	if s.Lanes < 1 || s.Lanes > MaxLanes {
		return fmt.Errorf("lanes: %d; want 1 to %d", s.Lanes, MaxLanes)
	}
	if len(s.Sinks) == 0 {
		return errors.New("sinks: none; name at least one, such as ingress,archive")
	}
	if s.Grace < time.Second {
		return fmt.Errorf("grace: %v; want at least 1s", s.Grace)
	}
	if s.DedupeWindow != 0 && (s.DedupeWindow < time.Second || s.DedupeWindow > 24*time.Hour) {
		return fmt.Errorf("dedupe window: %v; want 1s to 24h, or 0 to accept what comes again", s.DedupeWindow)
	}
	for _, name := range s.Sinks {
		if !sinkName.MatchString(name) {
			return fmt.Errorf("sinks: %q; a name is a lower-case letter followed by up to 31 letters, digits or underscores", name)
		}
	}
	return nil
}

// Migrate brings the database at url to this build's tables and creates the pipeline in
// it. It may be run by several processes at once and again at any time; it refuses to
// change the number of lanes, which ChangeLanes does.
func Migrate(ctx context.Context, url string, spec Spec) error {
	if err := spec.Validate(); err != nil {
		return err
	}
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return errors.New("database url: cannot be parsed; want postgres://user:password@host:port/database")
	}
	db := stdlib.OpenDB(*cfg)
	defer db.Close()
	if err := checkEncoding(ctx, db); err != nil {
		return err
	}
	if _, err := db.ExecContext(ctx, `CREATE SCHEMA IF NOT EXISTS waybill`); err != nil {
		// Two at once may both find it missing; the second then finds it.
		if _, again := db.ExecContext(ctx, `CREATE SCHEMA IF NOT EXISTS waybill`); again != nil {
			return fmt.Errorf("create the schema waybill: %w", err)
		}
	}
	locker, err := lock.NewPostgresSessionLocker()
	if err != nil {
		return fmt.Errorf("migration lock: %w", err)
	}
	provider, err := goose.NewProvider(goose.DialectPostgres, db, postgres.Migrations,
		goose.WithSessionLocker(locker), goose.WithTableName("waybill.goose_db_version"))
	if err != nil {
		return fmt.Errorf("read the migrations: %w", err)
	}
	if _, err := provider.Up(ctx); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	if _, err := db.ExecContext(ctx, `
		INSERT INTO waybill.pipeline AS p (lanes, grace, dedupe_window)
		VALUES ($1, $2::bigint * interval '1 microsecond', $3::bigint * interval '1 microsecond')
		ON CONFLICT (one) DO UPDATE SET
			grace = CASE WHEN $4 THEN p.grace ELSE excluded.grace END,
			dedupe_window = CASE WHEN $5 THEN p.dedupe_window ELSE excluded.dedupe_window END
		WHERE p.lanes = excluded.lanes`,
		spec.Lanes, spec.Grace.Microseconds(), spec.DedupeWindow.Microseconds(), spec.Kept.Grace, spec.Kept.DedupeWindow); err != nil {
		return fmt.Errorf("create the pipeline: %w", err)
	}
	var lanes int
	if err := db.QueryRowContext(ctx, `SELECT lanes FROM waybill.pipeline`).Scan(&lanes); err != nil {
		return fmt.Errorf("read the pipeline: %w", err)
	}
	if lanes != spec.Lanes {
		return fmt.Errorf("lanes: the pipeline was created with %d, not %d, and the number is fixed; set WAYBILL_LANES=%d (or see `waybill migrate --change-lanes`)", lanes, spec.Lanes, lanes)
	}
	if _, err := db.ExecContext(ctx, `
		INSERT INTO waybill.sinks (name) SELECT unnest($1::text[])
		WHERE NOT $2 OR NOT EXISTS (SELECT FROM waybill.sinks)
		ON CONFLICT DO NOTHING`, spec.Sinks, spec.Kept.Sinks); err != nil {
		return fmt.Errorf("add the sinks: %w", err)
	}
	return nil
}

// checkEncoding refuses to make a pipeline in a database whose text cannot be all that an event's may be: such
// events could never be committed. SQL_ASCII takes what it is given.
func checkEncoding(ctx context.Context, db *sql.DB) error {
	var encoding string
	var made bool
	err := db.QueryRowContext(ctx, `SELECT current_setting('server_encoding'), to_regclass('waybill.pipeline') IS NOT NULL`).Scan(&encoding, &made)
	if err != nil {
		return fmt.Errorf("look at the database: %w", err)
	}
	if !made && encoding != "UTF8" && encoding != "SQL_ASCII" {
		return fmt.Errorf("the database's encoding is %s, in which not every event can be stored; use one that is made with CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0", encoding)
	}
	return nil
}

// LatestMigration is the highest number among the embedded migrations.
func LatestMigration() (int64, error) {
	files, err := fs.Glob(postgres.Migrations, "*.sql")
	if err != nil || len(files) == 0 {
		return 0, fmt.Errorf("no embedded migrations: %w", err)
	}
	var latest int64
	for _, name := range files {
		number, _, _ := strings.Cut(name, "_")
		n, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("migration %s: the name does not begin with a number", name)
		}
		latest = max(latest, n)
	}
	return latest, nil
}
