package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/waybillhq/waybill/internal/devstack"
	"github.com/waybillhq/waybill/internal/pgconnect"
	"github.com/waybillhq/waybill/pipeline"
)

// slowTrip is from where on a round trip to Postgres is worth a word: every flush waits for one.
const slowTrip = 20 * time.Millisecond

// oldTransaction is how long a transaction may be open before it is worth a word.
const oldTransaction = 30 * time.Minute

// database is a patient that is asked in SQL.
type database struct {
	patient
	conn *pgx.Conn
	cfg  Config
}

func examinePostgres(ctx context.Context, cfg Config) []Finding {
	if cfg.DatabaseURL == "" {
		return nil
	}
	d := &database{patient: patient{server: "postgres"}, cfg: cfg}
	pc, err := pgx.ParseConfig(cfg.DatabaseURL)
	if err != nil { // whose text may hold the password
		d.fail("reachable", "set WAYBILL_DATABASE_URL to postgres://user:password@host:port/database", "the database URL cannot be parsed")
		return d.findings
	}
	pc.ConnectTimeout = 5 * time.Second
	pc.RuntimeParams["application_name"], pc.RuntimeParams["statement_timeout"] = "waybill doctor", "10000"
	if d.conn, err = pgx.ConnectConfig(ctx, pc); err != nil {
		d.fail("reachable", pgconnect.Remedy(err, "--database-url (WAYBILL_DATABASE_URL)"), "%v", pgconnect.Explain(err, ""))
		return d.findings
	}
	defer func() { _ = d.conn.Close(context.WithoutCancel(ctx)) }() // nothing is under way
	if !d.version(ctx) {
		return d.findings
	}
	d.time(ctx)
	d.durability(ctx)
	d.load(ctx)
	d.disk(ctx, pc)
	if d.schema(ctx) {
		d.pipeline(ctx)
		d.privileges(ctx)
		d.othersStatistics(ctx)
		d.outbox(ctx)
	}
	return d.findings
}

// ask reads one row, and says so where that fails.
func (d *database) ask(ctx context.Context, check, sql string, into ...any) bool {
	if err := d.conn.QueryRow(ctx, sql).Scan(into...); err != nil {
		d.warn(check, "see whether the role may read it", "cannot be found out: %v", err)
		return false
	}
	return true
}

func (d *database) version(ctx context.Context) bool {
	var number int
	var text, role string
	var super, standby bool
	if !d.ask(ctx, "reachable", `SELECT current_setting('server_version_num')::int, current_setting('server_version'),
		current_user, (SELECT rolsuper FROM pg_roles WHERE rolname = current_user), pg_is_in_recovery()`, &number, &text, &role, &super, &standby) {
		return false
	}
	if super {
		role += ", a superuser; docs/operations.md lists the privileges that are enough"
	}
	d.ok("reachable", "as %s", role)
	switch {
	case number < 140000:
		d.fail("version", "upgrade to PostgreSQL 14 or newer", "PostgreSQL %s", text)
	case standby:
		d.fail("version", "name the primary in WAYBILL_DATABASE_URL; target_session_attrs=read-write finds it among several hosts", "PostgreSQL %s, and it is a standby: nothing can be stored", text)
	default:
		d.ok("version", "PostgreSQL %s", text)
	}
	return true
}

// time looks at the clock, and at how long an answer takes.
func (d *database) time(ctx context.Context) {
	var best time.Duration
	var theirs, before, after time.Time
	for i := range 5 {
		var now time.Time
		began := time.Now()
		if !d.ask(ctx, "clock", `SELECT clock_timestamp()`, &now) {
			return
		}
		if took := time.Since(began); i == 0 || took < best {
			best, theirs, before, after = took, now, began, began.Add(took)
		}
	}
	d.clock(theirs, before, after, 0, d.cfg.ExpiryMargin)
	if best > slowTrip {
		d.warn("round trip", "run ingests nearer to the database: each flush waits for a round trip and a commit", "%s", best.Round(time.Microsecond))
		return
	}
	d.ok("round trip", "%s", best.Round(time.Microsecond))
}

// durability looks at what a committed event depends on.
func (d *database) durability(ctx context.Context) {
	var fsync, pages, checksums, autovacuum, cluster string
	if !d.ask(ctx, "durability", `SELECT current_setting('fsync'), current_setting('full_page_writes'),
		current_setting('data_checksums'), current_setting('autovacuum'), current_setting('cluster_name')`,
		&fsync, &pages, &checksums, &autovacuum, &cluster) {
		return
	}
	if fsync != "on" || pages != "on" {
		d.fail("durability", "set fsync and full_page_writes to on: a crash of the machine loses accepted events", "fsync is %s, full_page_writes is %s", fsync, pages)
	} else {
		d.ok("durability", "fsync and full_page_writes are on; synchronous_commit is forced on by every process")
	}
	switch {
	case checksums == "on":
		d.ok("checksums", "data checksums are on")
	case cluster == devstack.PostgresClusterName:
		d.ok("checksums", "data checksums are off, as in every Postgres that `waybill dev` makes: one that keeps what matters should have them")
	default:
		d.warn("checksums", "run pg_checksums --enable while the server is stopped, so that a bad disk is noticed", "data checksums are off")
	}
	if autovacuum != "on" {
		d.fail("autovacuum", "set autovacuum to on: the tables grow without end", "it is off")
	} else {
		d.ok("autovacuum", "it is on")
	}
}

// load looks at connections and at transactions that hold up vacuum.
func (d *database) load(ctx context.Context) {
	var used, most int
	var oldest float64
	if !d.ask(ctx, "connections", `SELECT count(*) FILTER (WHERE backend_type = 'client backend'), current_setting('max_connections')::int,
		coalesce(extract(epoch FROM max(clock_timestamp() - xact_start) FILTER (WHERE backend_type = 'client backend')), 0)::float8
		FROM pg_stat_activity`, &used, &most, &oldest) {
		return
	}
	if 5*used > 4*most {
		d.warn("connections", "raise max_connections, or lower --database-conns of the processes", "%d of %d are in use", used, most)
	} else {
		d.ok("connections", "%d of %d are in use", used, most)
	}
	if age := time.Duration(oldest * float64(time.Second)); age > oldTransaction {
		d.warn("transactions", "end it (pg_stat_activity shows whose it is): until then vacuum frees nothing and the log of accepted events grows", "one is open for %s", age.Round(time.Second))
	} else {
		d.ok("transactions", "none is open for longer than %s", oldTransaction)
	}
}

// disk looks at the size of the database and, where the server's directory can be seen from here, at the
// room that is left.
func (d *database) disk(ctx context.Context, pc *pgx.ConnConfig) {
	var size int64
	if d.ask(ctx, "disk", `SELECT pg_database_size(current_database())`, &size) {
		d.ok("size", "the database takes %s", bytesText(uint64(size)))
	}
	if !local(pc.Host) {
		d.ok("disk", "not known: the server is on another machine")
		return
	}
	var dir string
	if err := d.conn.QueryRow(ctx, `SHOW data_directory`).Scan(&dir); err != nil {
		d.ok("disk", "not known: the role may not see where the data is")
		return
	}
	free, total, err := diskRoom(dir)
	if err != nil {
		d.ok("disk", "not known: %s cannot be seen from here", dir)
		return
	}
	var wal int64
	if d.ask(ctx, "disk", `SELECT pg_size_bytes(current_setting('max_wal_size'))`, &wal) {
		d.room(dir, free, total, uint64(max(wal, 0)))
	}
}

// room judges the disk by what Postgres may take of it at any moment: its log grows by max_wal_size before
// a checkpoint frees any of it. A share alone would fail a large disk with room for days, and pass a small
// one with room for seconds.
func (d *database) room(dir string, free, total, wal uint64) {
	const remedy = "make room: a Postgres without any stops, and producers get 503"
	text := fmt.Sprintf("%s: %s of %s free", dir, bytesText(free), bytesText(total))
	switch {
	case free < wal:
		d.fail("disk", remedy, "%s, and Postgres's log alone may grow by max_wal_size, %s", text, bytesText(wal))
	case nearlyFull(total-min(free, total), total):
		d.warn("disk", remedy, "%s", text)
	default:
		d.ok("disk", "%s", text)
	}
}

// local tells a host of this machine.
func local(host string) bool {
	if strings.HasPrefix(host, "/") || host == "localhost" {
		return true
	}
	if name, err := os.Hostname(); err == nil && host == name {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// schema reports whether the rest can be looked at.
func (d *database) schema(ctx context.Context) bool {
	const remedy = "run `waybill migrate`"
	want, err := pipeline.LatestMigration()
	if err != nil {
		d.fail("schema", "build waybill anew", "%v", err)
		return false
	}
	var have int64
	err = d.conn.QueryRow(ctx, `SELECT coalesce(max(version_id), 0) FROM waybill.goose_db_version WHERE is_applied`).Scan(&have)
	var answer *pgconn.PgError
	switch {
	case errors.As(err, &answer) && (answer.Code == "42P01" || answer.Code == "3F000"):
		d.fail("schema", remedy, "the database has no Waybill tables")
		return false
	case errors.As(err, &answer) && answer.Code == "42501":
		d.fail("schema", "GRANT USAGE ON SCHEMA waybill, and what else docs/operations.md lists, to the role", "%v", err)
		return false
	case err != nil:
		d.fail("schema", "see the server's log", "%v", err)
		return false
	case have < want:
		d.fail("schema", remedy, "migration %d, and this build needs %d", have, want)
		return false
	case have > want:
		d.warn("schema", "use the build that migrated it, or a newer one", "migration %d, and this build knows %d", have, want)
	default:
		d.ok("schema", "migration %d", have)
	}
	return true
}

func (d *database) pipeline(ctx context.Context) {
	var lanes int
	var sinks []string
	err := d.conn.QueryRow(ctx, `SELECT lanes, (SELECT array_agg(name ORDER BY name) FROM waybill.sinks) FROM waybill.pipeline`).Scan(&lanes, &sinks)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		d.fail("pipeline", "run `waybill migrate`", "it was not created")
	case err != nil:
		d.fail("pipeline", "give the role SELECT on waybill.pipeline and waybill.sinks", "%v", err)
	case lanes != d.cfg.Lanes:
		d.fail("pipeline", fmt.Sprintf("set --lanes=%d (WAYBILL_LANES=%d) here, and see that every process has it", lanes, lanes), "it has %d lanes, and the setting is %d", lanes, d.cfg.Lanes)
	case len(sinks) == 0:
		d.fail("pipeline", "run `waybill migrate --sinks …`", "it has no sink: nothing is delivered")
	default:
		d.ok("pipeline", "%d lanes, sinks %s", lanes, strings.Join(sinks, ", "))
	}
}

// privilegesSQL names what the role lacks.
const privilegesSQL = `
WITH relations AS (
    SELECT c.oid, c.relname, c.relkind FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'waybill'
), wanted AS (
    SELECT relname, p.privilege, has_table_privilege(oid, p.privilege) AS has
    FROM relations, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS p(privilege)
    WHERE relkind IN ('r', 'p') AND relname <> 'goose_db_version'
    UNION ALL
    SELECT relname, 'SELECT', has_table_privilege(oid, 'SELECT') FROM relations WHERE relname = 'goose_db_version'
    UNION ALL
    SELECT relname, 'TRUNCATE', has_table_privilege(oid, 'TRUNCATE') FROM relations WHERE relname ~ '^dedupe_log_[0-9]+$'
    UNION ALL
    SELECT relname, p.privilege, has_sequence_privilege(oid, p.privilege)
    FROM relations, unnest(ARRAY['USAGE', 'UPDATE']) AS p(privilege) WHERE relname = 'batch_numbers'
    UNION ALL
    SELECT p.proname, 'EXECUTE', has_function_privilege(p.oid, 'EXECUTE')
    FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'waybill'
)
SELECT format('%s ON waybill.%s', string_agg(privilege, ', '), relname) FROM wanted WHERE NOT has GROUP BY relname ORDER BY relname`

func (d *database) privileges(ctx context.Context) {
	rows, err := d.conn.Query(ctx, privilegesSQL)
	if err != nil {
		d.warn("privileges", "see the server's log", "cannot be found out: %v", err)
		return
	}
	missing, err := pgx.CollectRows(rows, pgx.RowTo[string])
	switch {
	case err != nil:
		d.warn("privileges", "see the server's log", "cannot be found out: %v", err)
	case len(missing) > 0:
		d.fail("privileges", "GRANT "+missing[0]+" to the role, and so on; or connect as the role that ingest and janitor use", "it lacks %s", strings.Join(missing, "; "))
	default:
		d.ok("privileges", "the role may do all that ingest and janitor do")
	}
}

// othersStatistics looks for sessions of Waybill's under other roles: a janitor ends those of ingests that
// stand still, if it may.
func (d *database) othersStatistics(ctx context.Context) {
	var others []string
	var may bool
	if !d.ask(ctx, "sessions", `SELECT coalesce(array_agg(DISTINCT usename::text) FILTER (WHERE usename <> current_user), '{}'),
		pg_has_role('pg_read_all_stats', 'MEMBER') FROM pg_stat_activity WHERE application_name = 'waybill'`, &others, &may) {
		return
	}
	slices.Sort(others)
	switch {
	case len(others) == 0:
		d.ok("sessions", "no other role's")
	case !may:
		d.warn("sessions", "GRANT pg_read_all_stats, and ingest's role, to the janitor's role: it ends sessions that stand still in a COPY", "Waybill connects as %s too, and this role sees nothing of what they do", strings.Join(others, ", "))
	default:
		d.ok("sessions", "those of %s can be seen", strings.Join(others, ", "))
	}
}
