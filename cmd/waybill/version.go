package main

import "github.com/waybillhq/waybill/internal/cli"

type versionCommand struct{ outputFlag }

// Run prints the version of the module, as the build knows it, and of Go.
func (c versionCommand) Run(con *console) error {
	v := cli.BuiltFrom()
	return c.print(con, v.Text("waybill"), v)
}
