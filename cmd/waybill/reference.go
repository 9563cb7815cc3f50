package main

import (
	"fmt"
	"io"

	"github.com/alecthomas/kong"

	"github.com/waybillhq/waybill/internal/cli"
)

//go:generate go run . reference --out ../../docs/cli.md

// referenceCommand writes docs/cli.md.
type referenceCommand struct {
	Out string `type:"path" env:"-" help:"File to write, instead of standard output."`
}

// Run writes the reference of all commands.
func (c *referenceCommand) Run(parsed *kong.Context, con *console) error {
	return writeTo(c.Out, con.out, func(w io.Writer) error { return writeReference(w, parsed.Model.Node) })
}

const referenceHead = `# The command line

<!-- Made by make generate. What stands here comes from the commands themselves. -->

What each command of ` + "`waybill`" + ` takes. The programs ` + "`ingest`, `forwarder` and `janitor`" + ` take what
` + "`waybill ingest`, `waybill forwarder` and `waybill janitor`" + ` do. [operations.md](operations.md) says which to use when.

## Where a setting comes from

The first of these that has it: the flag; the variable; for secrets, the file that the variable with ` + "`_FILE`" + ` at
its end names; for commands that look at a running system or send to it, the ` + "`waybill dev`" + ` that runs in the directory
` + "`WAYBILL_DIR`" + ` (` + "`.waybill`" + `), unless a flag or a variable
names one of its servers, and so another system; the default. ` + "`waybill config print`" + ` shows what that comes to, and where each came from.

## Output

Results go to standard output, progress and hints to standard error. With ` + "`-o json`" + ` a result is one JSON object a
line. Times are RFC 3339 in UTC; what ends in ` + "`_seconds`" + ` or ` + "`_bytes`" + ` is a number of these.

## Exit codes

| code | |
|---|---|
`

func writeReference(w io.Writer, root *kong.Node) error {
	if _, err := io.WriteString(w, referenceHead); err != nil {
		return err
	}
	for _, c := range cli.ExitCodes() {
		if _, err := fmt.Fprintf(w, "| %d | %s |\n", c.Code, c.Meaning); err != nil {
			return err
		}
	}
	return cli.WriteReference(w, root)
}
