package pgtest_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m, pgtest.Options{Template: template}) }

func template(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, "CREATE TABLE parcels (id int PRIMARY KEY); INSERT INTO parcels VALUES (1)")
	return err
}

// Each of many tests at once finds the template's row and nobody else's.
func TestDatabasesAreApart(t *testing.T) {
	for i := range 6 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			conn := mustConnect(t, pgtest.New(t))
			mustExec(t, conn, "INSERT INTO parcels VALUES ($1)", 100+i)
			var n int
			if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM parcels").Scan(&n); err != nil {
				t.Fatal(err)
			}
			if n != 2 {
				t.Errorf("%d rows, want the template's and the one inserted", n)
			}
		})
	}
}

func TestDatabaseIsDroppedWithItsTest(t *testing.T) {
	var url string
	t.Run("with a database", func(t *testing.T) {
		url = pgtest.New(t)
		mustConnect(t, url) // stays open beyond the drop
	})
	if conn, err := pgx.Connect(t.Context(), url); err == nil {
		_ = conn.Close(t.Context())
		t.Error("the database is still there after its test")
	}
}

func TestNewEmpty(t *testing.T) {
	conn := mustConnect(t, pgtest.NewEmpty(t))
	mustExec(t, conn, "CREATE TABLE parcels (id int)")
}

func TestNewClusterSurvivesAKill(t *testing.T) {
	pg := pgtest.NewCluster(t)
	mustExec(t, mustConnect(t, pg.URL("")), "CREATE TABLE kept (id int)")
	if err := pg.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := pg.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustExec(t, mustConnect(t, pg.URL("")), "INSERT INTO kept VALUES (1)")
}

// With TEST_DATABASE_URL the databases are made on that server, and nothing stays there.
func TestGivenServer(t *testing.T) {
	pg := pgtest.NewCluster(t)
	mustExec(t, mustConnect(t, pg.URL("postgres")), "ALTER SYSTEM SET log_statement = 'ddl'")
	mustExec(t, mustConnect(t, pg.URL("postgres")), "SELECT pg_reload_conf()")
	out, err := runSelf(t, "^(TestDatabasesAreApart|TestNewEmpty)$", "TEST_DATABASE_URL="+pg.URL("postgres"))
	if err != nil {
		t.Fatalf("the tests on a given server: %v\n%s", err, out)
	}
	conn := mustConnect(t, pg.URL("postgres"))
	var left int
	err = conn.QueryRow(t.Context(), `SELECT count(*) FROM pg_database WHERE datname LIKE 'waybill\_%'`).Scan(&left)
	if err != nil {
		t.Fatal(err)
	}
	if left != 0 {
		t.Errorf("%d databases were left behind", left)
	}
	if out := string(mustRead(t, pg.LogPath())); !strings.Contains(out, "waybill_template_") {
		t.Error("the databases were made somewhere else")
	}
}

// Without a Postgres the tests fail; they are not skipped, and say why.
func TestWithoutPostgresTestsFail(t *testing.T) {
	for says, env := range map[string]string{
		"connect to the server of TEST_DATABASE_URL": "TEST_DATABASE_URL=postgres://nobody@127.0.0.1:1/none",
		"TEST_DATABASE_URL is not a URL":             "TEST_DATABASE_URL=not a url",
		"or name a server in TEST_DATABASE_URL":      "TMPDIR=" + filepath.Join(t.TempDir(), "missing"), // so that none can be started
	} {
		out, err := runSelf(t, "^TestNewEmpty$", "TEST_DATABASE_URL=", env)
		if err == nil || !strings.Contains(out, "FAIL: TestNewEmpty") || !strings.Contains(out, says) {
			t.Errorf("with %s: error %v and\n%s", env, err, out)
		}
	}
}

// A cluster whose test binary was killed is deleted by a later one; one in use is not.
func TestLeftoversAreRemoved(t *testing.T) {
	temp := t.TempDir()
	old := filepath.Join(temp, "waybill-pgtest-killed")
	if err := os.MkdirAll(filepath.Join(old, "postgres"), 0o755); err != nil {
		t.Fatal(err)
	}
	hourAgo := time.Now().Add(-time.Hour)
	if err := os.Chtimes(old, hourAgo, hourAgo); err != nil {
		t.Fatal(err)
	}
	out, err := runSelf(t, "^TestNewEmpty$", "TMPDIR="+temp, "TEST_DATABASE_URL=")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	left, err := filepath.Glob(filepath.Join(temp, "waybill-pgtest-*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// runSelf runs tests of this binary in a process of its own.
func runSelf(t *testing.T, tests string, env ...string) (string, error) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, "-test.run", tests, "-test.v")
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func mustConnect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func mustExec(t *testing.T, conn *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}
