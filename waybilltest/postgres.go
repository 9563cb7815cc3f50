package waybilltest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/internal/pgtest"
	"github.com/waybillhq/waybill/pipeline"
)

// databaseEnv names a server to make databases on.
const databaseEnv = "WAYBILLTEST_DATABASE_URL"

// shared is the Postgres server of this test binary: a package variable, since there is nothing else that the tests
// of a binary have in common.
var shared struct {
	mu     sync.Mutex
	tried  bool
	server *pgtest.Server
	failed error // why there is none
}

// sharedServer finds the server, or starts it, once.
func sharedServer(ctx context.Context) (*pgtest.Server, error) {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if !shared.tried {
		shared.tried = true
		shared.server, shared.failed = openServer(ctx)
	}
	return shared.server, shared.failed
}

func openServer(ctx context.Context) (*pgtest.Server, error) {
	given, from, err := givenServer(os.Getenv)
	if err != nil {
		return nil, err
	}
	server, err := pgtest.Open(ctx, given, from, pgtest.Options{Template: func(ctx context.Context, url string) error {
		return pipeline.Migrate(ctx, url, spec(defaultLanes))
	}})
	if err != nil {
		if given == "" {
			err = fmt.Errorf("start a private Postgres: %w, or name a server in %s", err, databaseEnv)
		}
		return nil, err
	}
	if err := server.EndWithProcess(); err != nil {
		return nil, errors.Join(err, server.Close())
	}
	return server, nil
}

// givenServer returns the URL of the server that the environment names, and which of it does; empty: none.
func givenServer(getenv func(string) string) (given, from string, err error) {
	if given := getenv(databaseEnv); given != "" {
		return given, databaseEnv, nil
	}
	if getenv("PGHOST") == "" {
		return "", "", nil
	}
	c, err := pgx.ParseConfig("") // libpq's variables, and .pgpass
	if err != nil {
		return "", "", fmt.Errorf("the server of PGHOST: %w", err)
	}
	u := url.URL{Scheme: "postgres", User: url.UserPassword(c.User, c.Password), Path: "/" + c.Database}
	q := url.Values{"host": {c.Host}, "port": {strconv.Itoa(int(c.Port))}} // a host may be a directory of sockets
	if mode := getenv("PGSSLMODE"); mode != "" {
		q.Set("sslmode", mode)
	}
	u.RawQuery = q.Encode()
	return u.String(), "PGHOST", nil
}

// spec is the pipeline of a test. Its grace is short: what falls out of the queue comes again within seconds.
func spec(lanes int) pipeline.Spec {
	s := pipeline.DefaultSpec()
	s.Lanes, s.Grace = lanes, grace
	return s
}

// newDatabase returns the URL of a database with a pipeline, and what drops it.
func newDatabase(ctx context.Context, lanes int) (url string, drop func(context.Context) error, err error) {
	server, err := sharedServer(ctx)
	if err != nil {
		return "", nil, err
	}
	// On somebody else's server no template is left behind.
	migrate := !server.Private() || lanes != defaultLanes
	if url, drop, err = server.Database(ctx, migrate); err != nil || !migrate {
		return url, drop, err
	}
	if err := pipeline.Migrate(ctx, url, spec(lanes)); err != nil {
		return "", nil, errors.Join(err, drop(context.WithoutCancel(ctx)))
	}
	return url, drop, nil
}
