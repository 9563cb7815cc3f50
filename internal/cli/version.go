package cli

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/alecthomas/kong"
)

// Version is what a program was built from, as -o json prints it.
type Version struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Go       string `json:"go"`
}

// BuiltFrom is the version of the module, as the build knows it, and of Go.
func BuiltFrom() Version {
	v := Version{Version: "devel", Go: runtime.Version()}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if info.Main.Version != "" {
		v.Version = info.Main.Version
	}
	for _, setting := range info.Settings {
		if setting.Key == "vcs.revision" {
			v.Revision = setting.Value
		}
	}
	return v
}

// Text is for people: the program's name, and what there is.
func (v Version) Text(name string) string {
	return strings.Join(strings.Fields(fmt.Sprintf("%s %s %s %s", name, v.Version, v.Revision, v.Go)), " ")
}

// versionFlag is --version of a program that has no commands.
func versionFlag(name string) []kong.Option {
	return []kong.Option{kong.Vars{"version": BuiltFrom().Text(name)}, kong.Embed(&struct {
		Version kong.VersionFlag `env:"-" help:"Print the version."`
	}{})}
}
