package main

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/internal/devstack"
)

// What the harness builds reads a clock that is off by what the environment says, and only
// then.
func TestBuiltClockIsOff(t *testing.T) {
	dir := t.TempDir()
	overlay, err := clockOverlay(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "clock")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-overlay", overlay, "-o", binary, "./testdata/clock").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	for _, test := range []struct {
		env  []string
		want time.Duration
	}{
		{nil, 0},
		{[]string{offsetEnv + "=300"}, 5 * time.Minute},
		{[]string{offsetEnv + "=-300"}, -5 * time.Minute},
	} {
		cmd := exec.CommandContext(t.Context(), binary)
		cmd.Env = test.env
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", test.env, err, out)
		}
		wall, slept, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
		at, err := time.Parse(time.RFC3339, wall)
		if err != nil {
			t.Fatal(err)
		}
		if off := time.Until(at) - test.want; off.Abs() > 30*time.Second {
			t.Errorf("%v: the clock is %v off, want %v", test.env, time.Until(at).Round(time.Second), test.want)
		}
		if d, err := time.ParseDuration(slept); err != nil || d < 10*time.Millisecond || d > 20*time.Second {
			t.Errorf("%v: 10 ms took %s (%v)", test.env, slept, err)
		}
	}
	cmd := exec.CommandContext(t.Context(), binary)
	cmd.Env = []string{offsetEnv + "=soon"}
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "number of seconds") {
		t.Errorf("an offset that is none: %v\n%s", err, out)
	}
}

func TestChangeClockWantsOnePlace(t *testing.T) {
	for _, source := range []string{"package time\n", clockReading + clockReading} {
		if _, err := changeClock(source); err == nil || !strings.Contains(err.Error(), "want once") {
			t.Errorf("%q: %v", source, err)
		}
	}
}

// Postgres's clock is where the harness puts it, also while the server runs and for
// connections that are open.
func TestPostgresClockJumps(t *testing.T) {
	library, err := faketimeLibrary()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "clock")
	if err := writeClock(file, 0); err != nil {
		t.Fatal(err)
	}
	options := devstack.DefaultPostgresOptions(filepath.Join(dir, "postgres"))
	options.Env, options.Fsync = fakeClock(library, file), false
	server, err := devstack.StartPostgres(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Remove(); err != nil {
			t.Error(err)
		}
	})
	conn, err := pgx.Connect(t.Context(), server.URL(""))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for _, offset := range []time.Duration{0, clockOff, -clockOff, 0} {
		if err := writeClock(file, offset); err != nil {
			t.Fatal(err)
		}
		var now time.Time
		if err := conn.QueryRow(t.Context(), `SELECT clock_timestamp()`).Scan(&now); err != nil {
			t.Fatal(err)
		}
		if off := time.Until(now) - offset; off.Abs() > 30*time.Second {
			t.Errorf("the clock is %v off, want %v", time.Until(now).Round(time.Second), offset)
		}
	}
}
