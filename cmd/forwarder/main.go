// Command forwarder takes lanes of the queue in NATS JetStream and delivers what is in them
// to the sinks: a ChipIngress endpoint and an S3 archive. It does not use Postgres. The
// lanes are spread over the forwarders that are alive.
//
//	WAYBILL_NATS_URL=nats://… WAYBILL_INGRESS_ENDPOINT=host:port WAYBILL_S3_BUCKET=… forwarder
//
// # Flags
//
// Every flag can be set by a variable: --ingress-endpoint by WAYBILL_INGRESS_ENDPOINT.
// Secrets can be read from a file: WAYBILL_S3_SECRET_KEY_FILE. `forwarder --help` lists all
// of them with their defaults.
//
// # Endpoints
//
//	--admin-addr  GET /livez, /readyz (why it is not ready), /metrics, /debug/pprof/
//
// # Logs
//
// Standard error, one record a line, JSON unless --log-format=text. Payloads and secrets
// are never logged. It ends with status 0 after SIGINT or SIGTERM, once the requests in
// flight have ended and their receipts are stored, and with 1 when it could not start or
// had to give up.
package main

import (
	"github.com/waybillhq/waybill/internal/cli"
	"github.com/waybillhq/waybill/internal/process"
)

func main() {
	cli.Main("forwarder", "Delivers queued events to the sinks.", &process.Forwarder{}, process.Defaults(), process.Checks())
}
