package bench

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Machine is where a run took place.
type Machine struct {
	CPU    string `json:"cpu"`
	Cores  int    `json:"cores"`
	Arch   string `json:"arch"`
	Memory int64  `json:"memory_bytes"`
	Kernel string `json:"kernel"`
	// Load is the load average over a minute when the run began: what else was going on.
	Load float64 `json:"load_average"`
}

// readMachine returns what can be found out.
func readMachine() Machine {
	m := Machine{Cores: runtime.NumCPU(), Arch: runtime.GOARCH, CPU: procValue("/proc/cpuinfo", "model name")}
	if fields := strings.Fields(procValue("/proc/meminfo", "MemTotal")); len(fields) > 0 {
		kib, _ := strconv.ParseInt(fields[0], 10, 64) // 0 is as good as unknown
		m.Memory = kib << 10
	}
	if kernel, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(kernel))
	}
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		first, _, _ := strings.Cut(string(load), " ")
		m.Load, _ = strconv.ParseFloat(first, 64) // as above
	}
	return m
}

// procValue is the value of the first line "name: value" of a file; empty: none.
func procValue(path, name string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// ownVersions are those of this binary.
func ownVersions() map[string]string {
	out := map[string]string{"go": runtime.Version()}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return out
	}
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	if out["waybill"] = settings["vcs.revision"]; out["waybill"] == "" {
		out["waybill"] = info.Main.Version
	}
	if settings["vcs.modified"] == "true" {
		out["waybill"] += " (modified)"
	}
	return out
}

// noteVersions asks the servers for theirs.
func (s *System) noteVersions(ctx context.Context) error {
	if s.nats != nil {
		s.bench.report.Versions["nats"] = s.nats.ConnectedServerVersion()
	}
	if s.databaseURL == "" {
		return nil
	}
	conn, err := s.postgres(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }() // it only reads
	return noteVersion(ctx, s.bench.report, conn)
}

// noteVersion asks Postgres for its version and for what makes a commit durable.
func noteVersion(ctx context.Context, r *Report, conn *pgx.Conn) error {
	var version, fsync, commit string
	if err := conn.QueryRow(ctx, `SELECT current_setting('server_version'), current_setting('fsync'), current_setting('synchronous_commit')`).Scan(&version, &fsync, &commit); err != nil {
		return fmt.Errorf("version of Postgres: %w", err)
	}
	r.Versions["postgres"] = fmt.Sprintf("%s (fsync %s, synchronous_commit %s)", version, fsync, commit)
	return nil
}
