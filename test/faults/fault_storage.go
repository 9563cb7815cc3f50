package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/internal/devrun"
)

// smallDisk puts Postgres's data on a disk that can be filled: a small one where this
// process may mount it, else one whose files cannot grow.
func smallDisk(_ *devrun.Config, s *system) error {
	if err := unmountLeftovers(); err != nil {
		return err
	}
	dir := filepath.Join(s.dir, "postgres")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("directory of the small disk: %w", err)
	}
	d, err := mountDisk(dir)
	if err != nil {
		s.disk = &fileLimit{pid: func() int { return s.pid("postgres") }}
		return nil
	}
	s.disk, s.undo = d, append(s.undo, d.unmount)
	return nil
}

// diskFull leaves Postgres no room, for a while.
type diskFull struct {
	s       *system
	full    *full
	logFrom int64 // size of the log before

	cancel  context.CancelFunc
	pushing sync.WaitGroup
}

// postgresLog is the server's log, which is on another disk.
func (s *system) postgresLog() string { return filepath.Join(s.dir, "logs", "postgres.log") }

func (f *diskFull) inject(ctx context.Context) error {
	f.s.watch.trouble("postgres", true)
	info, err := os.Stat(f.s.postgresLog())
	if err != nil {
		return fmt.Errorf("read the log of Postgres: %w", err)
	}
	f.logFrom, f.full = info.Size(), &full{disk: f.s.disk}
	if err := f.full.inject(ctx); err != nil {
		return err
	}
	ctx, f.cancel = context.WithCancel(ctx)
	f.pushing.Go(func() { f.push(ctx) })
	return nil
}

// push makes Postgres need another file for its log of writes, for which there is no room:
// otherwise that may take longer than the disk is full. Its errors are what is wanted.
func (f *diskFull) push(ctx context.Context) {
	sleep(ctx, second) // inserts are the first to fail
	for ctx.Err() == nil {
		if conn, err := pgx.Connect(ctx, f.s.stack.DatabaseURL); err == nil {
			_, _ = conn.Exec(ctx, `SELECT pg_logical_emit_message(false, 'faults', repeat('x', 9 << 20)), pg_switch_wal()`)
			_ = conn.Close(ctx)
		}
		sleep(ctx, 2*lookEvery)
	}
}

// noticeLimit is how much longer than planned the disk stays full for Postgres to notice: it may
// have files of old writes to use up first, which takes a busy machine its time.
const noticeLimit = 10 * time.Second

func (f *diskFull) heal(ctx context.Context) error {
	for deadline := time.Now().Add(noticeLimit); f.cancel != nil && f.tookPlace() != nil && time.Now().Before(deadline) && ctx.Err() == nil; {
		sleep(ctx, lookEvery)
	}
	if f.cancel != nil {
		f.cancel()
		f.pushing.Wait()
	}
	if f.full == nil {
		return nil
	}
	if err := f.full.heal(ctx); err != nil {
		return err
	}
	if err := f.s.exec(ctx, `SELECT`); err != nil {
		return err
	}
	f.s.watch.trouble("postgres", false)
	return f.tookPlace()
}

// tookPlace wants Postgres to have noticed, and to have ended over it.
func (f *diskFull) tookPlace() error {
	log, err := os.ReadFile(f.s.postgresLog())
	if err != nil {
		return fmt.Errorf("read the log of Postgres: %w", err)
	}
	log = log[min(f.logFrom, int64(len(log))):]
	noRoom := bytes.Contains(log, []byte(capital(syscall.ENOSPC))) || bytes.Contains(log, []byte(capital(syscall.EFBIG)))
	if !noRoom || !bytes.Contains(log, []byte("PANIC")) {
		return errors.New("the log of Postgres tells of no full disk and no PANIC: the disk was not full")
	}
	return nil
}

// capital is an error as the C library words it.
func capital(err syscall.Errno) string {
	text := err.Error()
	return strings.ToUpper(text[:1]) + text[1:]
}

// heldSnapshot keeps a transaction with a snapshot open, so that Postgres can clean nothing
// up that was deleted since.
type heldSnapshot struct{ holdTransaction }

func holdSnapshot(s *system) fault {
	return &heldSnapshot{holdTransaction{s: s, begin: `BEGIN ISOLATION LEVEL REPEATABLE READ`, statement: `SELECT count(*) FROM waybill.pipeline`}}
}

// heal wants the transaction to have lasted.
func (f *heldSnapshot) heal(ctx context.Context) error {
	var lasted bool
	err := errors.New("there was none")
	if f.conn != nil {
		err = f.conn.QueryRow(ctx, `SELECT backend_xmin IS NOT NULL FROM pg_stat_activity WHERE pid = pg_backend_pid()`).Scan(&lasted)
	}
	if err == nil && !lasted {
		err = errors.New("it holds no snapshot")
	}
	if err != nil {
		err = fmt.Errorf("the transaction that was held open has not lasted: %w", err)
	}
	return errors.Join(err, f.holdTransaction.heal(ctx))
}
