// Command ingest takes CloudEvents over HTTP and gRPC, makes each durable in Postgres
// before it answers, and publishes it to NATS JetStream. Any number of them may run behind
// a load balancer.
//
//	WAYBILL_DATABASE_URL=postgres://… WAYBILL_NATS_URL=nats://… ingest
//
// # Flags
//
// Every flag can be set by a variable: --http-addr by WAYBILL_HTTP_ADDR. Secrets can be
// read from a file: WAYBILL_DATABASE_URL_FILE. `ingest --help` lists all of them with
// their defaults.
//
// # Endpoints
//
//	--http-addr   POST /v1/events: CloudEvents in binary, structured and batched mode
//	--grpc-addr   chipingress.pb.ChipIngress, grpc.health.v1.Health, server reflection
//	--admin-addr  GET /livez, /readyz (why it is not ready), /metrics, /debug/pprof/
//
// # Logs
//
// Standard error, one record a line, JSON unless --log-format=text. Payloads and secrets
// are never logged. It ends with status 0 after SIGINT or SIGTERM, once what it took is
// answered, and with 1 when it could not start or had to give up.
package main

import (
	"github.com/waybillhq/waybill/internal/cli"
	"github.com/waybillhq/waybill/internal/process"
)

func main() {
	cli.Main("ingest", "Takes CloudEvents and makes them durable before it answers.", &process.Ingest{}, process.Defaults(), process.Checks())
}
