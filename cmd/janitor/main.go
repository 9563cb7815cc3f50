// Command janitor settles deliveries in Postgres, retransmits what fell out of the queue,
// moves what expired to the dead letters, and keeps streams and consumers in order. At
// least one must run; any number may.
//
//	WAYBILL_DATABASE_URL=postgres://… WAYBILL_NATS_URL=nats://… janitor
//
// # Flags
//
// Every flag can be set by a variable: --replay-window by WAYBILL_REPLAY_WINDOW. Secrets
// can be read from a file: WAYBILL_DATABASE_URL_FILE. `janitor --help` lists all of them
// with their defaults.
//
// # Endpoints
//
//	--admin-addr  GET /livez, /readyz (why it is not ready), /metrics, /debug/pprof/
//
// # Logs
//
// Standard error, one record a line, JSON unless --log-format=text. Payloads and secrets
// are never logged. It ends with status 0 after SIGINT or SIGTERM and with 1 when it could
// not start or had to give up.
package main

import (
	"github.com/waybillhq/waybill/internal/cli"
	"github.com/waybillhq/waybill/internal/process"
)

func main() {
	cli.Main("janitor", "Settles, retransmits, expires and tidies up.", &process.Janitor{}, process.Defaults(), process.Checks())
}
