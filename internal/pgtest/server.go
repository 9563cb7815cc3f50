package pgtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/waybillhq/waybill/internal/devstack"
)

const (
	// clusterPrefix names the directories of private clusters below the temporary
	// directory.
	clusterPrefix = "waybill-pgtest-"
	// objectInUse is Postgres's code for a template that somebody is connected to.
	objectInUse = "55006"
	// templatePause is how long to wait for the last connection to a template to end.
	templatePause = 50 * time.Millisecond
	// leftoverAge is how old a directory must be for being taken for a leftover: its
	// maker locks it at once.
	leftoverAge = time.Minute
)

// Server is a Postgres server that test databases are made on. Its methods are safe for concurrent use.
type Server struct {
	admin   *url.URL           // a database to connect to for making others
	private *devstack.Postgres // nil: the server is not ours
	lock    *devstack.DirLock  // of the private cluster's directory
	fill    func(ctx context.Context, url string) error

	mu       sync.Mutex
	template string // name of the template database; empty until it is made
	failed   error  // why there is none; tried once
}

// Open uses the server at a URL, or starts a private one where the URL is empty. from says what the URL is the value of, for
// errors. Close ends it.
func Open(ctx context.Context, given, from string, opts Options) (*Server, error) {
	s := &Server{fill: opts.Template}
	if given == "" {
		if err := s.startPrivate(ctx, opts); err != nil {
			return nil, fmt.Errorf("start a private Postgres: %w; or name a server in %s", err, from)
		}
		return s, nil
	}
	var err error
	s.admin, err = url.Parse(given)
	if err != nil || !strings.HasPrefix(s.admin.Scheme, "postgres") {
		// Not the error itself: it quotes the URL and with it a password.
		return nil, fmt.Errorf("%s is not a URL: want postgres://user:password@host:port/database", from)
	}
	if err := s.exec(ctx, "SELECT 1"); err != nil {
		return nil, fmt.Errorf("connect to the server of %s: %w", from, err)
	}
	return s, nil
}

// Private reports whether the server is one that Open started.
func (s *Server) Private() bool { return s.private != nil }

// EndWithProcess has a private server ended, and its files deleted, once this process has ended, for who
// cannot be sure to call Close. The server of somebody else stays as it is.
func (s *Server) EndWithProcess() error {
	if s.private == nil {
		return nil
	}
	return s.private.EndWithProcess(s.lock.Dir())
}

// Database makes a database, a copy of the template or an empty one, and returns its URL. drop
// deletes it, also while somebody is connected to it.
func (s *Server) Database(ctx context.Context, empty bool) (url string, drop func(context.Context) error, err error) {
	template := "template0"
	if !empty {
		if template, err = s.templateName(ctx); err != nil {
			return "", nil, fmt.Errorf("make the template database: %w", err)
		}
	}
	name := s.newName("test")
	if err := s.create(ctx, name, template); err != nil {
		return "", nil, fmt.Errorf("make a database for this test: %w", err)
	}
	return s.url(name), func(ctx context.Context) error { return s.drop(ctx, name) }, nil
}

func (s *Server) startPrivate(ctx context.Context, opts Options) error {
	removeLeftovers()
	dir, err := os.MkdirTemp("", clusterPrefix)
	if err != nil {
		return err
	}
	if s.lock, err = devstack.LockDir(dir); err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	o := devstack.DefaultPostgresOptions(filepath.Join(dir, "postgres"))
	o.Fsync = opts.Durable
	// Dozens of small databases, tests in parallel, two or three clusters at once.
	maps.Copy(o.Settings, map[string]string{"shared_buffers": "64MB", "autovacuum_naptime": "10s"})
	maps.Copy(o.Settings, opts.Settings)
	s.private, err = devstack.StartPostgres(ctx, o)
	if err == nil {
		s.admin, err = url.Parse(s.private.URL("postgres"))
	}
	if err != nil {
		return errors.Join(err, s.lock.Unlock(), os.RemoveAll(dir))
	}
	return nil
}

// removeLeftovers deletes the clusters of test binaries that were killed: those whose
// lock nobody holds. Their servers ended with them.
func removeLeftovers() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), clusterPrefix+"*")) // the pattern is well-formed
	for _, dir := range dirs {
		if info, err := os.Stat(dir); err != nil || time.Since(info.ModTime()) < leftoverAge {
			continue // just made, and perhaps not yet locked
		}
		lock, err := devstack.LockDir(dir)
		if err != nil {
			continue // in use, or another user's
		}
		_ = os.RemoveAll(dir) // what stays is found again
		_ = lock.Unlock()
	}
}

// Close stops a private cluster and deletes it; on a server that is not ours it drops
// the template.
func (s *Server) Close() error {
	if s.private != nil {
		dir := s.lock.Dir()
		return errors.Join(s.private.Remove(), s.lock.Unlock(), os.RemoveAll(dir))
	}
	if s.template == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	return s.drop(ctx, s.template)
}

// templateName makes the template database on the first call.
func (s *Server) templateName(ctx context.Context) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.template == "" && s.failed == nil {
		s.failed = s.makeTemplate(ctx)
	}
	return s.template, s.failed
}

func (s *Server) makeTemplate(ctx context.Context) error {
	name := s.newName("template")
	if err := s.create(ctx, name, "template0"); err != nil {
		return err
	}
	s.template = name
	if s.fill == nil {
		return nil
	}
	return s.fill(ctx, s.url(name))
}

// newName returns a database name that no other test binary uses.
func (s *Server) newName(kind string) string {
	return "waybill_" + kind + "_" + strings.ToLower(rand.Text()[:16])
}

func (s *Server) url(database string) string {
	u := *s.admin
	u.Path = "/" + database
	return u.String()
}

// create copies a database. A connection to the template that is just ending makes
// Postgres refuse; that passes.
func (s *Server) create(ctx context.Context, name, source string) error {
	for {
		err := s.exec(ctx, "CREATE DATABASE "+quote(name)+" TEMPLATE "+quote(source))
		var refused *pgconn.PgError
		if err == nil || !errors.As(err, &refused) || refused.Code != objectInUse {
			return err
		}
		select {
		case <-time.After(templatePause):
		case <-ctx.Done():
			return err
		}
	}
}

func (s *Server) drop(ctx context.Context, name string) error {
	return s.exec(ctx, "DROP DATABASE IF EXISTS "+quote(name)+" WITH (FORCE)")
}

// exec runs one statement on a connection of its own, since tests run in parallel and
// some take long.
func (s *Server) exec(ctx context.Context, sql string) error {
	conn, err := pgx.Connect(ctx, s.admin.String())
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }() // its work is done or has failed
	_, err = conn.Exec(ctx, sql)
	return err
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }
