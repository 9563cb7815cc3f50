package waybilltest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/internal/pgtest"
	"github.com/waybillhq/waybill/waybilltest"
)

// childEnv makes this test binary one whose end another one watches, and says how it is to end: "end", "panic", "fail" in
// Start, or "wait" to be killed.
const childEnv = "WAYBILLTEST_CHILD"

// TestChild is what the tests below run in a process of its own.
func TestChild(t *testing.T) {
	mode := os.Getenv(childEnv)
	if mode == "" {
		return
	}
	if mode == "fail" {
		waybilltest.Start(noDirectory{t}) // its database is made at the same time
	}
	w := waybilltest.Start(t)
	w.Emit(t, numbered("/a", 3)...)
	w.Expect(t, waybilltest.Filter{}, 3, patience)
	conn, err := pgx.Connect(t.Context(), w.DatabaseURL)
	if err != nil {
		t.Fatal(err)
	}
	var files string
	if err := conn.QueryRow(t.Context(), "SHOW data_directory").Scan(&files); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, _ = fmt.Printf("\nready %s %s \n", w.DatabaseURL, files)
	switch mode {
	case "wait":
		_, _ = io.Copy(io.Discard, os.Stdin) // to be killed, or for who would do it to end
	case "panic":
		panic("as it was told")
	}
}

// noDirectory is a test in whose temporary directory no nats-server can be started.
type noDirectory struct{ testing.TB }

func (noDirectory) TempDir() string { return os.DevNull }

func child(t *testing.T, mode string, env ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, self, "-test.run=^TestChild$", "-test.v")
	// What is not said of Postgres does not count.
	cmd.Env = append(os.Environ(), "AWS_PROFILE=missing", "OTEL_TRACES_EXPORTER=nonsense", "WAYBILL_S3_PREFIX=elsewhere",
		"WAYBILLTEST_DATABASE_URL=", "PGHOST=", childEnv+"="+mode)
	cmd.Env = append(cmd.Env, env...)
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// The private Postgres ends with the test binary, with all its files, also when that is killed.
func TestPrivateServerEndsWithTheBinary(t *testing.T) {
	for _, mode := range []string{"end", "wait"} {
		t.Run(mode, func(t *testing.T) {
			temp := t.TempDir()
			cmd := child(t, mode, "TMPDIR="+temp)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			fields := strings.Fields(readUntil(t, out, "\nready ", "\n"))
			database, files := fields[0], fields[1]
			if _, err := os.Stat(files); err != nil {
				t.Fatal(err)
			}
			if mode == "wait" {
				if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
			_ = cmd.Wait() // how it ended is not what is looked at
			eventually(t, "its Postgres ends", func() bool {
				conn, err := pgx.Connect(t.Context(), database)
				if err == nil {
					_ = conn.Close(t.Context())
				}
				return err != nil
			})
			eventually(t, "its files are gone", func() bool {
				left, err := filepath.Glob(filepath.Join(temp, "waybill-pgtest-*"))
				_, missing := os.Stat(files)
				return err == nil && len(left) == 0 && errors.Is(missing, fs.ErrNotExist)
			})
		})
	}
}

// readUntil returns what stands between two texts.
func readUntil(t *testing.T, out io.Reader, begin, end string) string {
	t.Helper()
	var text strings.Builder
	buffer := make([]byte, 4096)
	for {
		n, err := out.Read(buffer)
		text.Write(buffer[:n])
		if _, rest, found := strings.Cut(text.String(), begin); found && strings.Contains(rest, end) {
			between, _, _ := strings.Cut(rest, end)
			return between
		}
		if err != nil {
			t.Fatalf("%v after\n%s", err, text.String())
		}
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// A server that the environment names is used, in each of the two ways, and no database stays on it, nor a file
// anywhere, however the test ends.
func TestGivenServer(t *testing.T) {
	pg := pgtest.NewCluster(t)
	u, err := url.Parse(pg.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	password, _ := u.User.Password()
	byURL := []string{"WAYBILLTEST_DATABASE_URL=" + pg.URL("postgres")}
	byPG := []string{
		"PGHOST=" + u.Hostname(), "PGPORT=" + u.Port(), "PGUSER=" + u.User.Username(), "PGPASSWORD=" + password,
		"PGDATABASE=postgres", "PGSSLMODE=disable",
	}
	for _, c := range []struct {
		mode string
		env  []string
		says string
	}{
		{"end", byURL, ":" + u.Port() + "/"},
		{"end", byPG, "port=" + u.Port()},
		{"panic", byURL, "panic: as it was told"},
		{"fail", byURL, "waybilltest: start: start NATS: "},
	} {
		from, _, _ := strings.Cut(c.env[0], "=")
		t.Run(c.mode+" "+from, func(t *testing.T) {
			temp := t.TempDir()
			out, err := child(t, c.mode, append(c.env, "TMPDIR="+temp)...).CombinedOutput()
			if (err == nil) != (c.mode == "end") || !strings.Contains(string(out), c.says) {
				t.Fatalf("%v, and it does not say %q:\n%s", err, c.says, out)
			}
			if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
				t.Errorf("files were left behind: %v, %v", left, err)
			}
			conn, err := pgx.Connect(t.Context(), pg.URL("postgres"))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close(context.Background()) }()
			var left int
			if err := conn.QueryRow(t.Context(), `SELECT count(*) FROM pg_database WHERE datname LIKE 'waybill\_%'`).Scan(&left); err != nil || left != 0 {
				t.Errorf("%d databases were left behind: %v", left, err)
			}
		})
	}
}

// A server that does not answer fails the test, which says what named it.
func TestGivenServerThatIsNotThere(t *testing.T) {
	for from, env := range map[string][]string{
		"WAYBILLTEST_DATABASE_URL": {"WAYBILLTEST_DATABASE_URL=postgres://nobody@127.0.0.1:1/none"},
		"PGHOST":                   {"PGHOST=127.0.0.1", "PGPORT=1", "PGUSER=nobody"},
	} {
		out, err := child(t, "end", env...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "FAIL: TestChild") || !strings.Contains(string(out), from) {
			t.Errorf("%s: %v\n%s", from, err, out)
		}
	}
}
