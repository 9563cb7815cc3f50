package devstack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
)

// OldestPostgres is the first major version that Waybill is made for.
const OldestPostgres = 14

// ErrNoPostgres means that this machine has no PostgreSQL server programs. Whoever can use a server that exists adds how
// it is named.
var ErrNoPostgres = errors.New("no PostgreSQL server programs (initdb, postgres) in PATH, in /usr/lib/postgresql/*/bin or where pg_config points: " +
	"install them (apt-get install postgresql)")

// postgresInstall is one set of PostgreSQL server programs.
type postgresInstall struct {
	bin   string // the directory of initdb and postgres
	major int
}

// findPostgres returns the programs to use: for major > 0 those of that version, which
// alone can open its data directories; for 0 the first found in PATH, then the newest of
// /usr/lib/postgresql/*/bin, then pg_config's.
func findPostgres(ctx context.Context, major int) (postgresInstall, error) {
	var found []string
	for _, dir := range postgresDirs(ctx) {
		install, err := inspectPostgres(ctx, dir)
		if err != nil {
			continue // no server programs there, or none that run
		}
		if install.major == major || major == 0 && install.major >= OldestPostgres {
			return install, nil
		}
		found = append(found, fmt.Sprintf("%d in %s", install.major, dir))
	}
	switch {
	case len(found) == 0:
		return postgresInstall{}, ErrNoPostgres
	case major == 0:
		return postgresInstall{}, fmt.Errorf("want PostgreSQL %d or later, found %s: install a newer one", OldestPostgres, strings.Join(found, ", "))
	default:
		return postgresInstall{}, fmt.Errorf("the data directory was made by PostgreSQL %d, found %s: install version %d or remove the directory", major, strings.Join(found, ", "), major)
	}
}

// postgresDirs lists where server programs may be, in order of preference.
func postgresDirs(ctx context.Context) []string {
	var dirs []string
	if path, err := exec.LookPath("initdb"); err == nil {
		dirs = append(dirs, filepath.Dir(path))
	}
	packaged, _ := filepath.Glob("/usr/lib/postgresql/*/bin") // the pattern is well-formed
	sort.Slice(packaged, func(i, j int) bool { return debianMajor(packaged[i]) > debianMajor(packaged[j]) })
	dirs = append(dirs, packaged...)
	if out, err := exec.CommandContext(ctx, "pg_config", "--bindir").Output(); err == nil {
		dirs = append(dirs, strings.TrimSpace(string(out)))
	}
	return dirs
}

// debianMajor reads the 15 of /usr/lib/postgresql/15/bin; 0 when there is none.
func debianMajor(bin string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(bin)))
	return n
}

var postgresVersion = regexp.MustCompile(`\(PostgreSQL\) (\d+)`)

func inspectPostgres(ctx context.Context, dir string) (postgresInstall, error) {
	if _, err := os.Stat(filepath.Join(dir, "initdb")); err != nil {
		return postgresInstall{}, err
	}
	out, err := exec.CommandContext(ctx, filepath.Join(dir, "postgres"), "--version").Output()
	if err != nil {
		return postgresInstall{}, fmt.Errorf("ask %s/postgres for its version: %w", dir, err)
	}
	m := postgresVersion.FindSubmatch(out)
	if m == nil {
		return postgresInstall{}, fmt.Errorf("%s/postgres --version says %q", dir, out)
	}
	major, err := strconv.Atoi(string(m[1]))
	return postgresInstall{bin: dir, major: major}, err
}
