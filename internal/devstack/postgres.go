package devstack

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// PostgresUser is the superuser of a private cluster.
	PostgresUser = "waybill"
	// PostgresClusterName is the setting cluster_name of a private cluster, by which others know it.
	PostgresClusterName = "waybill-dev"
	// portAttempts is how often a free port may be lost to somebody else between
	// finding it and listening on it.
	portAttempts = 5
	// orphansPause is how long to wait for the last processes of a killed server.
	orphansPause = 100 * time.Millisecond
)

// PostgresOptions say how StartPostgres starts a cluster. Take them from
// DefaultPostgresOptions.
type PostgresOptions struct {
	// Dir holds the cluster (data/), its log and its superuser's password. The cluster
	// is created on the first start; later ones go on where it was.
	Dir string
	// Port of 127.0.0.1; 0: a free one.
	Port int
	// Database is created if it is missing.
	Database string
	// Fsync false makes it faster and able to lose everything in a crash of the
	// machine (not of the server): for tests.
	Fsync bool
	// Settings are further server settings, as in postgresql.conf.
	Settings map[string]string
	// LogPath is the server's log; empty: postgres.log in Dir.
	LogPath string
	// Env is further environment of the server, as KEY=value.
	Env []string
	// StartTimeout bounds one start, crash recovery and the wait for the remains of a
	// killed server included. StopTimeout is how long a stop may take before it becomes
	// a SIGKILL.
	StartTimeout, StopTimeout time.Duration
}

// DefaultPostgresOptions are a durable cluster in dir, on a free port, with a database
// named waybill.
func DefaultPostgresOptions(dir string) PostgresOptions {
	return PostgresOptions{
		Dir: dir, Database: "waybill", Fsync: true,
		Settings: map[string]string{
			"max_connections": "200",
			"shared_buffers":  "128MB",
			"max_wal_size":    "2GB",
		},
		StartTimeout: time.Minute, StopTimeout: 30 * time.Second,
	}
}

// Validate names the first field that cannot work.
func (o PostgresOptions) Validate() error {
	switch {
	case o.Dir == "":
		return errors.New("PostgresOptions.Dir is empty: name a directory for the cluster")
	case o.Port < 0 || o.Port > 65535:
		return fmt.Errorf("PostgresOptions.Port is %d: want 1 to 65535, or 0 for a free one", o.Port)
	case o.Database == "":
		return errors.New("PostgresOptions.Database is empty: name a database (see DefaultPostgresOptions)")
	case o.StartTimeout <= 0 || o.StopTimeout <= 0:
		return fmt.Errorf("PostgresOptions.StartTimeout is %s and StopTimeout %s: want more than 0 (see DefaultPostgresOptions)", o.StartTimeout, o.StopTimeout)
	}
	return nil
}

// Postgres is a private PostgreSQL cluster on 127.0.0.1. It is not for use by several
// goroutines at once, except URL, PID and Done.
type Postgres struct {
	options  PostgresOptions
	account  account
	home     string // what options.Dir says, or where the account can reach
	install  postgresInstall
	password string
	port     int
	process  *Process
	endPipe  *os.File // of EndWithProcess: open as long as this process lives; nil: none
}

// StartPostgres creates the cluster if there is none, starts it and waits until it
// answers. ctx bounds the start and not the server's life, which Stop or Kill ends.
func StartPostgres(ctx context.Context, options PostgresOptions) (*Postgres, error) {
	if err := options.Validate(); err != nil {
		return nil, err
	}
	var err error
	if options.Dir, err = filepath.Abs(options.Dir); err != nil {
		return nil, fmt.Errorf("PostgresOptions.Dir: %w", err)
	}
	pg := &Postgres{options: options, port: options.Port}
	if err := pg.prepare(ctx); err != nil {
		return nil, fmt.Errorf("prepare Postgres in %s: %w", options.Dir, err)
	}
	if err := pg.Start(ctx); err != nil {
		return nil, err
	}
	if err := pg.ensureDatabase(ctx, options.Database); err != nil {
		return nil, errors.Join(err, pg.Stop())
	}
	return pg, nil
}

// prepare finds the user, the place and the programs, and creates the cluster.
func (pg *Postgres) prepare(ctx context.Context) (err error) {
	if pg.account, err = postgresAccount(); err != nil {
		return err
	}
	if pg.home, err = pg.account.home(pg.options.Dir); err != nil {
		return err
	}
	version, err := os.ReadFile(pg.dataPath("PG_VERSION"))
	if errors.Is(err, fs.ErrNotExist) {
		return pg.create(ctx)
	}
	if err != nil {
		return err
	}
	major, err := strconv.Atoi(strings.TrimSpace(string(version)))
	if err != nil {
		return fmt.Errorf("%s: %w", pg.dataPath("PG_VERSION"), err)
	}
	if pg.install, err = findPostgres(ctx, major); err != nil {
		return err
	}
	password, err := os.ReadFile(pg.passwordPath())
	pg.password = string(password)
	return err
}

// create runs initdb in a directory beside the final one and renames it when it is
// whole, so that an interrupted creation is begun anew.
func (pg *Postgres) create(ctx context.Context) (err error) {
	if pg.install, err = findPostgres(ctx, 0); err != nil {
		return err
	}
	pg.password = rand.Text()
	if err := os.WriteFile(pg.passwordPath(), []byte(pg.password), 0o600); err != nil {
		return err
	}
	if err := pg.account.own(pg.passwordPath()); err != nil {
		return err
	}
	unfinished := filepath.Join(pg.home, "data.new")
	if err := os.RemoveAll(unfinished); err != nil {
		return err
	}
	// Byte order and UTF-8, on every machine; the caller's fsync decides at run time.
	initdb := exec.CommandContext(ctx, filepath.Join(pg.install.bin, "initdb"), "-D", unfinished,
		"-U", PostgresUser, "--pwfile", pg.passwordPath(), "--auth", "scram-sha-256",
		"--encoding", "UTF8", "--locale", "C", "--no-instructions", "--no-sync")
	initdb.Dir, initdb.Env = pg.home, postgresEnv()
	initdb.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: pg.account.credential}
	if out, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w:\n%s", err, out)
	}
	return os.Rename(unfinished, pg.dataPath(""))
}

// Start starts a stopped or killed cluster again, on the port that it had.
func (pg *Postgres) Start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, pg.options.StartTimeout)
	defer cancel()
	for attempt := 1; ; attempt++ {
		err := pg.startOnce(ctx)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil || !pg.worthAnotherStart(err, attempt):
			return err
		}
		select {
		case <-time.After(orphansPause):
		case <-ctx.Done():
			return err
		}
	}
}

// worthAnotherStart knows the failures that pass: the server processes of a killed
// predecessor, which take a moment to notice and end, and a free port that somebody else
// took in the meantime.
func (pg *Postgres) worthAnotherStart(err error, attempt int) bool {
	text := err.Error()
	if strings.Contains(text, "pre-existing shared memory block") || errors.Is(err, errDataDirInUse) {
		return true
	}
	return strings.Contains(text, "Address already in use") && attempt < portAttempts
}

func (pg *Postgres) startOnce(ctx context.Context) (err error) {
	if err := pg.removeStalePID(); err != nil {
		return err
	}
	free := pg.port == 0
	if free {
		if pg.port, err = FreePort(); err != nil {
			return err
		}
	}
	process, err := StartProcess(ctx, pg.command())
	switch {
	case err == nil:
		pg.process = process
	case free:
		pg.port = 0
	}
	return err
}

func (pg *Postgres) command() Command {
	settings := map[string]string{
		// No socket: its path may be too long for one, and others may not reach it.
		"unix_socket_directories": "",
		"cluster_name":            PostgresClusterName,
		"listen_addresses":        "127.0.0.1",
		"port":                    strconv.Itoa(pg.port),
		"fsync":                   onOff(pg.options.Fsync),
		"full_page_writes":        onOff(pg.options.Fsync),
		"timezone":                "UTC",
		"log_timezone":            "UTC",
		"jit":                     "off",
	}
	maps.Copy(settings, pg.options.Settings)
	args := []string{"-D", pg.dataPath("")}
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		args = append(args, "-c", name+"="+settings[name])
	}
	c := DefaultCommand("Postgres", filepath.Join(pg.install.bin, "postgres"), args...)
	c.Dir, c.Env = pg.home, append(postgresEnv(), pg.options.Env...)
	c.LogPath = pg.LogPath()
	c.Credential = pg.account.credential
	c.Ready, c.ReadyTimeout = pg.answers, pg.options.StartTimeout
	// SIGINT is a fast shutdown. SIGQUIT, for when nobody is left to wait, ends every
	// server process at once and leaves recovery to the next start; a SIGKILL would
	// leave the children of the first process behind for a while.
	c.StopSignal, c.StopTimeout = syscall.SIGINT, pg.options.StopTimeout
	c.DeathSignal = syscall.SIGQUIT
	return c
}

// postgresEnv keeps the caller's PG* variables away from the server.
func postgresEnv() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC"}
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

// answers connects with the password that only our own server knows, so that a stranger
// on the same port is not taken for it.
func (pg *Postgres) answers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, pg.URL("postgres"))
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

func (pg *Postgres) ensureDatabase(ctx context.Context, name string) error {
	conn, err := pgx.Connect(ctx, pg.URL("postgres"))
	if err != nil {
		return fmt.Errorf("connect to the new cluster: %w", err)
	}
	defer func() { _ = conn.Close(ctx) }() // its work is done or has failed
	var exists bool
	err = conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name).Scan(&exists)
	if err != nil {
		return fmt.Errorf("look for database %s: %w", name, err)
	}
	if exists {
		return nil
	}
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize()); err != nil {
		return fmt.Errorf("create database %s: %w", name, err)
	}
	return nil
}

// URL is the connection string of a database for the superuser; empty: of the one that
// the options name.
func (pg *Postgres) URL(database string) string {
	if database == "" {
		database = pg.options.Database
	}
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(PostgresUser, pg.password),
		Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(pg.port)), Path: "/" + database,
		RawQuery: "sslmode=disable",
	}
	return u.String()
}

// Port is the port of 127.0.0.1 that the server listens on.
func (pg *Postgres) Port() int { return pg.port }

// PID is the process id of the server's first process.
func (pg *Postgres) PID() int { return pg.process.PID() }

// LogPath is the server's log.
func (pg *Postgres) LogPath() string {
	if pg.options.LogPath != "" {
		return pg.options.LogPath
	}
	return filepath.Join(pg.home, "postgres.log")
}

// Done is closed when the server has ended, whatever ended it.
func (pg *Postgres) Done() <-chan struct{} { return pg.process.Done() }

// Stop ends the server as `pg_ctl stop -m fast` does: open transactions are rolled back.
func (pg *Postgres) Stop() error { return pg.process.Stop() }

// Kill ends all processes of the server at once with SIGKILL, as a crash of the machine
// would but for what the operating system still holds in memory.
func (pg *Postgres) Kill() error {
	children := childrenOf(pg.process.PID())
	err := pg.process.Kill9()
	for _, pid := range children {
		if pg.worksHere(pid) {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may just have noticed its parent's end
		}
	}
	return err
}

// Remove ends the server, if it runs, and deletes everything that the cluster left.
func (pg *Postgres) Remove() error {
	err := pg.Kill()
	err = errors.Join(err, os.RemoveAll(pg.home), os.RemoveAll(pg.options.Dir))
	if pg.endPipe != nil {
		err = errors.Join(err, pg.endPipe.Close()) // whoever waited for the end of this process finds nothing to do
	}
	return err
}

func (pg *Postgres) dataPath(name string) string { return filepath.Join(pg.home, "data", name) }
func (pg *Postgres) passwordPath() string        { return filepath.Join(pg.home, "password") }
