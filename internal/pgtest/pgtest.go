// Package pgtest gives each test a Postgres database of its own, copied from a template
// that is migrated once per test binary.
//
// The databases are on the server that TEST_DATABASE_URL names (its user must be allowed
// to create databases), else in a private cluster that the first test starts and that ends
// with the test binary. A test that has no Postgres fails; it is never skipped.
//
// A package that uses it has
//
//	func TestMain(m *testing.M) { pgtest.Main(m, pgtest.Options{Template: migrate}) }
package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/waybillhq/waybill/internal/devstack"
)

const (
	// urlEnv names a server to use instead of a private one.
	urlEnv = "TEST_DATABASE_URL"
	// askTimeout bounds what a test waits for its database: starting a cluster takes
	// seconds, and on a busy machine many.
	askTimeout = 3 * time.Minute
)

// Options say what the databases of a test binary are like.
type Options struct {
	// Template brings the template database, which is empty, to the state that each
	// test starts from; nil: it stays empty.
	Template func(ctx context.Context, url string) error
	// Durable turns fsync on in a private cluster: for tests that measure.
	Durable bool
	// Settings are further settings of a private cluster.
	Settings map[string]string
}

// binary is the state of the running test binary. A package variable is the one place
// where New can find it: testing hands nothing from TestMain to the tests.
var binary struct {
	mu     sync.Mutex
	main   bool // Main runs
	opts   Options
	server *Server // nil until the first test asks
	failed error   // why there is no server; tried once
}

// Main runs the tests of a package, stops what New started and exits. It is what TestMain
// calls.
func Main(m *testing.M, opts Options) {
	os.Exit(Run(m, opts))
}

// Run is Main for a TestMain that has something of its own to clean up: it returns the code to
// exit with.
func Run(m *testing.M, opts Options) (code int) {
	binary.mu.Lock()
	binary.main, binary.opts = true, opts
	binary.mu.Unlock()
	code = m.Run()
	binary.mu.Lock()
	defer binary.mu.Unlock()
	if binary.server == nil {
		return code
	}
	if err := binary.server.Close(); err != nil {
		fmt.Fprintf(os.Stderr, "pgtest: %v\n", err)
		return max(code, 1)
	}
	return code
}

// New returns the URL of a database of the test's own, a copy of the template, which is
// dropped when the test ends.
func New(t testing.TB) string {
	t.Helper()
	return newDatabase(t, false)
}

// NewEmpty is New without the template: for tests of what fills it.
func NewEmpty(t testing.TB) string {
	t.Helper()
	return newDatabase(t, true)
}

func newDatabase(t testing.TB, empty bool) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	server, err := sharedServer(ctx)
	if err != nil {
		t.Fatalf("this test needs Postgres: %v", err)
	}
	url, drop, err := server.Database(ctx, empty)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
		defer cancel()
		if err := drop(ctx); err != nil {
			t.Errorf("drop the database of this test: %v", err)
		}
	})
	return url
}

// sharedServer starts the binary's server or connects to the given one, once.
func sharedServer(ctx context.Context) (*Server, error) {
	binary.mu.Lock()
	defer binary.mu.Unlock()
	if !binary.main {
		return nil, errors.New("the package has no TestMain that calls pgtest.Main")
	}
	if binary.server == nil && binary.failed == nil {
		binary.server, binary.failed = Open(ctx, os.Getenv(urlEnv), urlEnv, binary.opts)
		if errors.Is(binary.failed, devstack.ErrNoPostgres) {
			binary.failed = fmt.Errorf("%w, or name a server in %s", binary.failed, urlEnv)
		}
	}
	return binary.server, binary.failed
}

// NewCluster starts a private cluster, with fsync on, for the one test that stops or
// kills it; it ends, and its files go, with the test. Its database is empty.
func NewCluster(t testing.TB) *devstack.Postgres {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	pg, err := devstack.StartPostgres(ctx, devstack.DefaultPostgresOptions(t.TempDir()))
	if err != nil {
		t.Fatalf("this test needs Postgres: %v", err)
	}
	t.Cleanup(func() {
		if err := pg.Remove(); err != nil {
			t.Errorf("remove the cluster of this test: %v", err)
		}
	})
	return pg
}
