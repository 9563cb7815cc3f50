package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/internal/devrun"
)

// faketimePlaces are where packages put the library that gives a program another clock.
var faketimePlaces = []string{
	"/usr/lib/*/faketime/libfaketime.so.1", "/usr/lib/faketime/libfaketime.so.1",
	"/usr/lib64/faketime/libfaketime.so.1", "/usr/local/lib/faketime/libfaketime.so.1",
}

// faketimeLibrary finds it.
func faketimeLibrary() (string, error) {
	for _, pattern := range faketimePlaces {
		if found, _ := filepath.Glob(pattern); len(found) > 0 { // the patterns are well-formed
			return found[0], nil
		}
	}
	return "", errors.New("libfaketime is missing, which sets Postgres's clock: as root, apt-get install libfaketime (`make faults` and `make test` do it where they may)")
}

// fakeClock is the environment of a server whose wall clock is off by what the file says,
// from one reading to the next. What measures durations is not touched, nor are files' times.
func fakeClock(library, file string) []string {
	return []string{
		"LD_PRELOAD=" + library, "FAKETIME_TIMESTAMP_FILE=" + file, "FAKETIME_NO_CACHE=1",
		"FAKETIME_DONT_FAKE_MONOTONIC=1", "DONT_FAKE_MONOTONIC=1", "NO_FAKE_STAT=1", "FAKETIME_DISABLE_SHM=1",
	}
}

// writeClock says by how much a clock is off from now on.
func writeClock(file string, offset time.Duration) error {
	next := file + ".next"
	if err := os.WriteFile(next, fmt.Appendf(nil, "%+d\n", int(offset.Seconds())), 0o644); err != nil {
		return fmt.Errorf("set a clock: %w", err)
	}
	if err := os.Rename(next, file); err != nil {
		return fmt.Errorf("set a clock: %w", err)
	}
	return nil
}

func (s *system) postgresClock() string { return filepath.Join(s.dir, "postgres-clock") }

// fakePostgresClock lets Postgres have a clock that can be set, and sets it.
func fakePostgresClock(offset time.Duration) setup {
	return func(c *devrun.Config, s *system) error {
		library, err := faketimeLibrary()
		if err != nil {
			return err
		}
		addEnv(c, func(name string) []string {
			if name != "postgres" {
				return nil
			}
			return fakeClock(library, s.postgresClock())
		})
		return writeClock(s.postgresClock(), offset)
	}
}

// addEnv gives processes more environment.
func addEnv(c *devrun.Config, of func(name string) []string) {
	before := c.EnvOf
	c.EnvOf = func(name string) []string {
		var env []string
		if before != nil {
			env = before(name)
		}
		return append(env, of(name)...)
	}
}

// clockJump sets Postgres's clock while it is at work, and back again.
type clockJump struct {
	s      *system
	offset time.Duration
}

func (f *clockJump) inject(ctx context.Context) error { return f.set(ctx, f.offset) }

func (f *clockJump) heal(ctx context.Context) error { return f.set(ctx, 0) }

func (f *clockJump) set(ctx context.Context, offset time.Duration) error {
	if err := writeClock(f.s.postgresClock(), offset); err != nil {
		return err
	}
	return (&wrongPostgresClock{f.s, offset}).inject(ctx)
}

// wrongPostgresClock checks that Postgres's clock is off as it was told to be.
type wrongPostgresClock struct {
	s      *system
	offset time.Duration
}

func (f *wrongPostgresClock) inject(ctx context.Context) error {
	return f.s.untilPostgres(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		var now time.Time
		if err := conn.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&now); err != nil {
			return err
		}
		if off := time.Until(now) - f.offset; off.Abs() > clockTolerance {
			return fmt.Errorf("the clock of Postgres is %v off, and was to be %v", time.Until(now).Round(time.Second), f.offset)
		}
		return nil
	})
}

func (f *wrongPostgresClock) heal(context.Context) error { return nil }
