package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
)

type versionCommand struct{ outputFlag }

// versionResult is what -o json prints.
type versionResult struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Go       string `json:"go"`
}

// Run prints the version of the module, as the build knows it, and of Go.
func (c versionCommand) Run(con *console) error { return c.print(con, versionText(), builtFrom()) }

// versionText is for people.
func versionText() string {
	v := builtFrom()
	return strings.Join(strings.Fields(fmt.Sprintf("waybill %s %s %s", v.Version, v.Revision, v.Go)), " ")
}

func builtFrom() versionResult {
	version, revision := "devel", ""
	if info, ok := debug.ReadBuildInfo(); ok {
		if info.Main.Version != "" {
			version = info.Main.Version
		}
		for _, setting := range info.Settings {
			if setting.Key == "vcs.revision" {
				revision = setting.Value
			}
		}
	}
	return versionResult{Version: version, Revision: revision, Go: runtime.Version()}
}
