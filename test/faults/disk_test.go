package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/waybillhq/waybill/internal/devstack"
)

// A full disk makes Postgres refuse and then panic, and with room it works again. Both ways
// of filling one are tried where this machine allows the first.
func TestFullDisk(t *testing.T) {
	for _, test := range []struct {
		name string
		disk func(t *testing.T, dir string, pid func() int) disk
	}{
		{"small disk", func(t *testing.T, dir string, _ func() int) disk {
			d, err := mountDisk(dir)
			if err != nil {
				t.Logf("only the limit of files can be tried: %v", err)
				return nil
			}
			t.Cleanup(func() {
				if err := d.unmount(); err != nil {
					t.Error(err)
				}
			})
			return d
		}},
		{"limit of files", func(_ *testing.T, _ string, pid func() int) disk { return &fileLimit{pid} }},
	} {
		t.Run(test.name, func(t *testing.T) {
			home := filepath.Join(t.TempDir(), "postgres")
			if err := os.Mkdir(home, 0o755); err != nil {
				t.Fatal(err)
			}
			var server *devstack.Postgres
			d := test.disk(t, home, func() int { return server.PID() })
			if d == nil {
				return
			}
			options := devstack.DefaultPostgresOptions(home)
			options.LogPath = filepath.Join(t.TempDir(), "postgres.log")
			server, err := devstack.StartPostgres(t.Context(), options)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := server.Kill(); err != nil {
					t.Error(err)
				}
			})
			if err := query(t.Context(), server, `CREATE TABLE t (s text)`); err != nil {
				t.Fatal(err)
			}
			if err := d.fill(); err != nil {
				t.Fatal(err)
			}
			mustPanic(t, server)
			if err := d.free(); err != nil {
				t.Fatal(err)
			}
			mustWork(t, server)
		})
	}
}

func query(ctx context.Context, server *devstack.Postgres, sql string) error {
	conn, err := pgx.Connect(ctx, server.URL(""))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, sql)
	return err
}

// mustPanic writes until the server has ended over it.
func mustPanic(t *testing.T, server *devstack.Postgres) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		err := query(t.Context(), server, `INSERT INTO t SELECT repeat('x', 1000) FROM generate_series(1, 10000)`)
		var refused *pgconn.PgError
		if err != nil && !errors.As(err, &refused) || err != nil && refused.Severity != "ERROR" {
			break // it panicked
		}
		_ = query(t.Context(), server, `SELECT pg_logical_emit_message(false, 'faults', repeat('x', 9 << 20)), pg_switch_wal()`)
		if time.Now().After(deadline) {
			t.Fatalf("the server goes on with a full disk (%v)", err)
		}
	}
	eventually(t, "PANIC in the log", func() bool {
		log, err := os.ReadFile(server.LogPath())
		return err == nil && bytes.Contains(log, []byte("PANIC"))
	})
}

// mustWork starts the server again if that is needed.
func mustWork(t *testing.T, server *devstack.Postgres) {
	t.Helper()
	eventually(t, "the server works", func() bool {
		select {
		case <-server.Done():
			if err := server.Start(t.Context()); err != nil {
				return false
			}
		default:
		}
		return query(t.Context(), server, `INSERT INTO t VALUES ('y')`) == nil
	})
}

// patience bounds a wait for what must come about; no test waits for it to pass.
const patience = 2 * time.Minute

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !is(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

func TestReadMounts(t *testing.T) {
	const mounts = "tmpfs /run tmpfs rw 0 0\nwaybill-faults-17 /tmp/waybill-faults-1/postgres tmpfs rw 0 0\nwaybill-faults-x /tmp tmpfs rw 0 0\n"
	got := readMounts(mounts)
	if len(got) != 1 || got["/tmp/waybill-faults-1/postgres"] != 17 {
		t.Errorf("found %v", got)
	}
}

// What a killed run left mounted is unmounted by the next, and what runs is left alone.
func TestLeftoverDisksAreUnmounted(t *testing.T) {
	d, dir := mustMount(t, 1<<22+1) // above the highest process id of Linux
	if d == nil {
		return
	}
	if err := unmountLeftovers(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there (%v)", dir, err)
	}
	d, dir = mustMount(t, os.Getpid())
	if err := unmountLeftovers(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Error(err)
	}
	if err := d.unmount(); err != nil {
		t.Error(err)
	}
}

// mustMount mounts a disk as another process may have; nil where nothing may be mounted.
func mustMount(t *testing.T, pid int) (*memoryDisk, string) {
	t.Helper()
	scratch := filepath.Join(t.TempDir(), scratchPrefix+"1")
	dir := filepath.Join(scratch, "postgres")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	d, err := mountAs(dir, pid)
	if err != nil {
		t.Logf("nothing can be mounted here: %v", err)
		return nil, ""
	}
	return d, scratch
}
