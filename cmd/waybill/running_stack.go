package main

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/waybillhq/waybill/internal/devrun"
)

// defaultDir is where `waybill dev` keeps its data.
const defaultDir = ".waybill"

// runningStack resolves flags that are set neither on the command line nor by a variable
// from what a running `waybill dev` wrote into its directory. Only for commands that look
// at a system or send to it: none of the processes must take up with another system's
// servers by accident. It is all or nothing: where one server is named otherwise, the others
// are not this stack's either.
type runningStack struct{ env map[string]string }

var _ kong.Resolver = (*runningStack)(nil)

func newRunningStack() *runningStack {
	dir := os.Getenv("WAYBILL_DIR")
	if dir == "" {
		dir = defaultDir
	}
	env := map[string]string{}
	data, err := os.ReadFile(filepath.Join(dir, devrun.EnvironmentFile))
	if err != nil {
		return &runningStack{env} // none runs
	}
	for line := range strings.Lines(string(data)) {
		if key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "="); ok {
			env[key] = value
		}
	}
	for key := range env {
		if isAddress(key) && (os.Getenv(key) != "" || os.Getenv(key+"_FILE") != "") {
			return &runningStack{}
		}
	}
	return &runningStack{env}
}

// isAddress tells what names a server, or is needed to reach it, from other settings.
func isAddress(key string) bool { return key != "WAYBILL_LANES" }

// overruled reports that the command line names a server.
func (r *runningStack) overruled(parsed *kong.Context) bool {
	for _, p := range parsed.Path {
		if p.Flag == nil || p.Resolved {
			continue
		}
		for _, key := range p.Flag.Envs {
			if _, ok := r.env[key]; ok && isAddress(key) {
				return true
			}
		}
	}
	return false
}

func (*runningStack) Validate(*kong.Application) error { return nil }

func (r *runningStack) Resolve(parsed *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	switch name, _, _ := strings.Cut(parsed.Command(), " "); name {
	case "status", "emit", "archive", "deadletters":
	default:
		return nil, nil
	}
	if r.overruled(parsed) {
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
