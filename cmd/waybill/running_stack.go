package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/waybillhq/waybill/internal/cli"
	"github.com/waybillhq/waybill/internal/devrun"
)

// defaultDir is where `waybill dev` keeps its data.
const defaultDir = ".waybill"

// runningStack resolves flags that are set neither on the command line nor by a variable
// from what a running `waybill dev` wrote into its directory. Only for commands that look
// at a system or send to it: none of the processes must take up with another system's
// servers by accident. It is all or nothing: where one server is named otherwise, the others
// are not this stack's either.
type runningStack struct {
	env map[string]string
	at  string // the directory that env is of, or would be but for by
	by  string // the variable that names another system's server
	dir string // where none runs
}

var _ kong.Resolver = (*runningStack)(nil)

func newRunningStack() *runningStack {
	dir := os.Getenv("WAYBILL_DIR")
	if dir == "" {
		dir = defaultDir
	}
	env := map[string]string{}
	data, err := os.ReadFile(filepath.Join(dir, devrun.EnvironmentFile))
	if err != nil {
		return &runningStack{dir: dir}
	}
	for line := range strings.Lines(string(data)) {
		if key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "="); ok {
			env[key] = value
		}
	}
	for key := range env {
		if isAddress(key) && (os.Getenv(key) != "" || os.Getenv(key+"_FILE") != "") {
			return &runningStack{at: dir, by: key}
		}
	}
	return &runningStack{env: env, at: dir}
}

// explain adds to the error of a command line that nothing could be resolved for what it
// lacks, where a person may well have expected it. It returns nil for nil.
func (r *runningStack) explain(err error) error {
	err = cli.Explain(err)
	var parse *kong.ParseError
	if !errors.As(err, &parse) || !looks(parse.Context) {
		return err
	}
	missing := strings.Contains(err.Error(), "missing flags: --database-url")
	switch by := r.overruler(parse.Context); {
	case by != "" && (missing || strings.Contains(err.Error(), ": is empty; ")):
		return fmt.Errorf("%w; the `waybill dev` in %s is not asked, since %s names a server, and so another system", err, r.at, by)
	case missing && r.dir != "":
		return fmt.Errorf("%w; or run it where a `waybill dev` runs: none does in %s, which WAYBILL_DIR may change", err, r.dir)
	}
	return err
}

// explainFailure adds to the error of a server that did not answer what a `waybill dev` around has to do with it. It
// returns nil for nil.
func (r *runningStack) explainFailure(err error, parsed *kong.Context) error {
	about, away := aboutServer(err)
	if !about || !looks(parsed) {
		return err
	}
	if r.at == "" {
		// Where a Postgres is required, that is missed first.
		nats := guessed(parsed, "nats-url") && !hasFlag(parsed, "database-url")
		if away && (nats || guessed(parsed, "to") && guessed(parsed, "outbox")) {
			return fmt.Errorf("%w; or run it where a `waybill dev` runs: none does in %s, which WAYBILL_DIR may change", err, r.dir)
		}
		return err
	}
	if by := r.overruler(parsed); by != "" {
		return fmt.Errorf("%w; the `waybill dev` in %s is not asked, since %s names a server, and so another system: without that, its servers are taken", err, r.at, by)
	}
	if away {
		return fmt.Errorf("%w; the address is of the `waybill dev` in %s: if it was killed, start it again", err, r.at)
	}
	return err
}

// guessed reports that nothing has set a flag that the command has, so that its default was taken.
func guessed(parsed *kong.Context, name string) bool {
	for _, p := range parsed.Path {
		if p.Flag != nil && p.Flag.Name == name {
			return false
		}
	}
	for _, flag := range parsed.Flags() {
		if flag.Name != name {
			continue
		}
		return !slices.ContainsFunc(flag.Envs, func(variable string) bool { return os.Getenv(variable) != "" })
	}
	return false
}

func hasFlag(parsed *kong.Context, name string) bool {
	return slices.ContainsFunc(parsed.Flags(), func(flag *kong.Flag) bool { return flag.Name == name })
}

// looks tells the commands that look at a running system or send to it.
func looks(parsed *kong.Context) bool {
	switch name, _, _ := strings.Cut(parsed.Command(), " "); name {
	case "status", "trace", "emit", "archive", "deadletters", "lanes", "doctor", "audit", "tail", "expect", "replay":
		return true
	}
	return false
}

// isAddress tells what names a server, or is needed to reach it, from other settings. A prefix may be that of a
// replay in the same bucket; and what OpenTelemetry's variables say is of processes.
func isAddress(key string) bool {
	return key != "WAYBILL_LANES" && key != "WAYBILL_S3_PREFIX" && key != "WAYBILL_ARCHIVE_LINGER" && !strings.HasPrefix(key, "OTEL_")
}

// overruler is the flag or the variable that names a server of another system; empty: there is none.
func (r *runningStack) overruler(parsed *kong.Context) string {
	if r.by != "" {
		return r.by
	}
	for _, p := range parsed.Path {
		if p.Flag == nil || p.Resolved {
			continue
		}
		for _, key := range p.Flag.Envs {
			if _, ok := r.env[key]; ok && isAddress(key) {
				return "--" + p.Flag.Name
			}
		}
	}
	return ""
}

func (*runningStack) Validate(*kong.Application) error { return nil }

func (r *runningStack) Resolve(parsed *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	if !looks(parsed) || r.overruler(parsed) != "" {
		return nil, nil
	}
	for _, key := range flag.Envs {
		if os.Getenv(key) != "" || os.Getenv(key+"_FILE") != "" {
			return nil, nil
		}
		if value, ok := r.env[key]; ok {
			return value, nil
		}
	}
	return nil, nil
}
