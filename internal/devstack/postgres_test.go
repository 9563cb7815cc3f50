package devstack_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/internal/devstack"
)

// A cluster goes on where it was, after a stop, after a kill and under a new owner.
func TestPostgresGoesOn(t *testing.T) {
	o := devstack.DefaultPostgresOptions(filepath.Join(t.TempDir(), "pg"))
	pg := mustPostgres(t, o)
	mustExec(t, pg, "CREATE TABLE kept (how text)")
	port := pg.Port()
	for how, end := range map[string]func() error{"stop": pg.Stop, "kill": pg.Kill} {
		mustExec(t, pg, "INSERT INTO kept VALUES ('"+how+"')")
		if err := end(); err != nil {
			t.Fatalf("%s: %v", how, err)
		}
		if err := pg.Start(t.Context()); err != nil {
			t.Fatalf("start after a %s: %v", how, err)
		}
	}
	if pg.Port() != port {
		t.Errorf("the port went from %d to %d", port, pg.Port())
	}
	if err := pg.Stop(); err != nil {
		t.Fatal(err)
	}
	again := mustPostgres(t, o)
	if n := mustCount(t, again, "kept"); n != 2 {
		t.Errorf("%d rows were kept, want 2", n)
	}
}

// The same as an ordinary user, whose own user the server then runs as.
func TestPostgresAsAnOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("the other tests of this run are by an ordinary user")
		return
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	uid, gid := mustAtoi(t, nobody.Uid), mustAtoi(t, nobody.Gid)
	home, err := os.MkdirTemp("", "waybill-nobody-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(home) })
	if err := os.Chown(home, uid, gid); err != nil {
		t.Fatal(err)
	}
	self := filepath.Join(home, "devstack.test") // go test's own copy is for root alone
	copySelf(t, self)
	cmd := exec.CommandContext(t.Context(), self, "-test.run", "^TestPostgresGoesOn$", "-test.v")
	cmd.Dir, cmd.Env = home, []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + home, "HOME=" + home}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestPostgresGoesOn") {
		t.Errorf("as nobody: %v\n%s", err, out)
	}
}

// When the process that started Postgres is killed, Postgres ends, and another process
// goes on with the cluster.
func TestPostgresDiesWithItsParent(t *testing.T) {
	if dir := os.Getenv(parentEnv); dir != "" {
		pg := mustPostgres(t, devstack.DefaultPostgresOptions(dir))
		mustExec(t, pg, "CREATE TABLE kept (how text); INSERT INTO kept VALUES ('committed')")
		fmt.Println("postgres", pg.PID())
		<-t.Context().Done()
	}
	dir := filepath.Join(t.TempDir(), "pg")
	parent, lines := runParent(t, "^TestPostgresDiesWithItsParent$", dir)
	pid := mustAtoi(t, strings.TrimPrefix(lines("postgres "), "postgres "))
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// At once, without waiting: the next start waits for the remains.
	pg := mustPostgres(t, devstack.DefaultPostgresOptions(dir))
	if n := mustCount(t, pg, "kept"); n != 1 {
		t.Errorf("%d rows were kept, want 1", n)
	}
	if running(pid) {
		t.Errorf("the server %d outlived its parent", pid)
	}
}

// The postmaster.pid of a killed server does not stand in the way, though a live process
// of the server's user has its number by now.
func TestPostgresOverAStalePID(t *testing.T) {
	o := devstack.DefaultPostgresOptions(filepath.Join(t.TempDir(), "pg"))
	pg := mustPostgres(t, o)
	pidFile := filepath.Join(filepath.Dir(pg.LogPath()), "data", "postmaster.pid")
	left, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := pg.Kill(); err != nil {
		t.Fatal(err)
	}
	owner := info.Sys().(*syscall.Stat_t)
	c := devstack.DefaultCommand("bystander", "sleep", "600")
	if os.Geteuid() == 0 {
		c.Credential = &syscall.Credential{Uid: owner.Uid, Gid: owner.Gid}
	}
	bystander := mustStart(t, c)
	_, rest, _ := strings.Cut(string(left), "\n")
	if err := os.WriteFile(pidFile, []byte(strconv.Itoa(bystander.PID())+"\n"+rest), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(pidFile, int(owner.Uid), int(owner.Gid)); err != nil {
		t.Fatal(err)
	}
	if err := pg.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !running(bystander.PID()) {
		t.Error("the bystander was ended")
	}
}

func TestPostgresSaysWhyItDoesNotStart(t *testing.T) {
	pg := mustPostgres(t, devstack.DefaultPostgresOptions(filepath.Join(t.TempDir(), "pg")))
	same := devstack.DefaultPostgresOptions(filepath.Dir(pg.LogPath()))
	same.StartTimeout = time.Second
	otherVersion := devstack.DefaultPostgresOptions(t.TempDir())
	mustWrite(t, filepath.Join(otherVersion.Dir, "data", "PG_VERSION"), "9\n")
	portTaken := devstack.DefaultPostgresOptions(filepath.Join(t.TempDir(), "pg"))
	portTaken.Port = pg.Port()
	wrongSetting := devstack.DefaultPostgresOptions(filepath.Join(t.TempDir(), "pg"))
	wrongSetting.Settings["shared_bufers"] = "1MB"
	file := filepath.Join(t.TempDir(), "file")
	mustWrite(t, file, "")
	for want, o := range map[string]devstack.PostgresOptions{
		"a Postgres server still runs on it": same,
		"made by PostgreSQL 9":               otherVersion,
		"Address already in use":             portTaken,
		"shared_bufers":                      wrongSetting,
		"not a directory":                    devstack.DefaultPostgresOptions(file),
		"PostgresOptions.Dir":                {},
	} {
		if second, err := devstack.StartPostgres(t.Context(), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q in it", err, want)
			if err == nil {
				_ = second.Remove()
			}
		}
	}
}

func TestPostgresRemove(t *testing.T) {
	o := devstack.DefaultPostgresOptions(filepath.Join(t.TempDir(), "pg"))
	pg := mustPostgres(t, o)
	if err := pg.Remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(o.Dir); !os.IsNotExist(err) {
		t.Errorf("the directory is still there: %v", err)
	}
}

// A cluster that is to end with this process may be removed before, and what was to go with it goes then.
func TestPostgresIsRemovedBeforeItsProcessEnds(t *testing.T) {
	dir := t.TempDir()
	pg := mustPostgres(t, devstack.DefaultPostgresOptions(filepath.Join(dir, "pg")))
	beside := filepath.Join(dir, "beside")
	mustWrite(t, filepath.Join(beside, "file"), "")
	if err := pg.EndWithProcess(beside); err != nil {
		t.Fatal(err)
	}
	if err := pg.EndWithProcess(); err == nil || !strings.Contains(err.Error(), "said before") {
		t.Errorf("said again: %v", err)
	}
	if err := pg.Remove(); err != nil {
		t.Error(err)
	}
	await(t, "what is beside the cluster to go", func() bool {
		_, err := os.Stat(beside)
		return os.IsNotExist(err)
	})
}

func mustPostgres(t *testing.T, o devstack.PostgresOptions) *devstack.Postgres {
	t.Helper()
	pg, err := devstack.StartPostgres(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pg.Kill() })
	return pg
}

func mustExec(t *testing.T, pg *devstack.Postgres, sql string) {
	t.Helper()
	if _, err := mustConnect(t, pg).Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

func mustCount(t *testing.T, pg *devstack.Postgres, table string) (n int) {
	t.Helper()
	if err := mustConnect(t, pg).QueryRow(t.Context(), "SELECT count(*) FROM "+table).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func mustConnect(t *testing.T, pg *devstack.Postgres) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), pg.URL(""))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func mustAtoi(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func mustWrite(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func copySelf(t *testing.T, to string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	from, err := os.Open(self)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = from.Close() }()
	dest, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(dest, from); err != nil {
		t.Fatal(err)
	}
	if err := dest.Close(); err != nil {
		t.Fatal(err)
	}
}
