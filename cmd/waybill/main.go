// Command waybill is the operator's: it starts the whole system on one machine, creates
// tables and streams, sends events, shows the state, reads the archive and handles dead
// letters.
//
//	waybill dev [--once N]              the whole system on this machine
//	waybill migrate                     create or update tables and streams; change the lanes
//	waybill emit [-]                    send events, from flags or NDJSON on standard input
//	waybill status                      what is pending, who works, what was given up
//	waybill archive cat                 print archived events
//	waybill deadletters ls|show         look at what a sink refused or did not take in time
//	waybill deadletters requeue|purge   send it again, or delete it
//	waybill replay --sink SINK          deliver again what was accepted before
//	waybill bench SCENARIO              measure a system and check that it loses nothing
//	waybill endpoint                    a ChipIngress endpoint that records what it gets
//	waybill ingest|forwarder|janitor    the three processes, as the programs of these names
//	waybill healthcheck URL             for containers without a shell
//	waybill version
//
// # Flags
//
// `waybill COMMAND --help` lists them. Every flag can be set by a variable: --database-url
// by WAYBILL_DATABASE_URL; secrets can be read from a file: WAYBILL_DATABASE_URL_FILE.
// Where neither is set, status, emit, archive, deadletters and replay take the addresses of the
// `waybill dev` that runs in the directory WAYBILL_DIR, .waybill by default.
//
// # Output
//
// Results go to standard output, everything else to standard error. The status is 0 when
// all went well, 1 when something failed or a command was interrupted, 80 for wrong flags. To be
// interrupted is the proper end of dev (without --once), endpoint, ingest, forwarder and janitor.
package main

import (
	"context"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/waybillhq/waybill/internal/bench"
	"github.com/waybillhq/waybill/internal/cli"
	"github.com/waybillhq/waybill/internal/devrun"
	"github.com/waybillhq/waybill/internal/endpoint"
	"github.com/waybillhq/waybill/internal/process"
	"github.com/waybillhq/waybill/internal/replay"
	"github.com/waybillhq/waybill/pipeline"
)

// commands is the command line.
type commands struct {
	Dev         devCommand         `cmd:"" help:"Run the whole system on this machine."`
	Migrate     migrateCommand     `cmd:"" help:"Create or update the tables and the streams."`
	Emit        emitCommand        `cmd:"" help:"Send events."`
	Status      statusCommand      `cmd:"" help:"Show what is pending, who works and what was given up."`
	Archive     archiveCommand     `cmd:"" help:"Read the archive."`
	Deadletters deadlettersCommand `cmd:"" help:"Look at dead letters, queue them again, or delete them."`
	Replay      replayCommand      `cmd:"" help:"Deliver again, to one sink, what was accepted before."`
	Ingest      process.Ingest     `cmd:"" help:"Run an ingest: take events and make them durable."`
	Forwarder   process.Forwarder  `cmd:"" help:"Run a forwarder: deliver queued events to the sinks."`
	Janitor     process.Janitor    `cmd:"" help:"Run a janitor: settle, retransmit, expire and tidy up."`
	Bench       benchCommand       `cmd:"" help:"Measure a system and check that it loses nothing."`
	BenchEcho   benchEchoCommand   `cmd:"" name:"bench-echo" hidden:"" help:"Run what waybill bench compares an ingest with."`
	Endpoint    endpointCommand    `cmd:"" help:"Run a ChipIngress endpoint that records what it gets."`
	NATSServer  natsServerCommand  `cmd:"" name:"nats-server" hidden:"" help:"Run the nats-server of waybill dev."`
	Healthcheck healthcheckCommand `cmd:"" help:"Ask a URL whether all is well."`
	Version     versionCommand     `cmd:"" help:"Print the version."`
}

// console is what a command reads and writes.
type console struct {
	in       io.Reader
	out, err io.Writer
	env      []string // KEY=value
	terminal bool     // whether a person watches out
	watches  bool     // whether a person watches err
	asks     bool     // whether in is a terminal, so that a person can be asked
}

func main() {
	con := &console{in: os.Stdin, out: os.Stdout, err: os.Stderr, env: os.Environ(), terminal: isTerminal(os.Stdout), watches: isTerminal(os.Stderr), asks: isTerminal(os.Stdin)}
	stack := newRunningStack()
	parser, err := newParser(stack)
	if err != nil {
		panic(err) // a mistake in the structs' tags
	}
	parsed, err := parser.Parse(os.Args[1:])
	parser.FatalIfErrorf(stack.explain(err))
	cli.Exit("waybill", cli.RunUntilSignal(func(ctx context.Context) error { return run(ctx, parsed, con) }))
}

func newParser(stack *runningStack) (*kong.Kong, error) {
	parser, err := cli.NewParser("waybill", "Durable delivery of CloudEvents: the operator's command.", &commands{}, process.Defaults(), defaults())
	if err != nil {
		return nil, err
	}
	return parser, kong.Resolvers(stack).Apply(parser)
}

func run(ctx context.Context, parsed *kong.Context, con *console) error {
	parsed.BindTo(ctx, (*context.Context)(nil))
	parsed.Bind(con)
	err := parsed.Run()
	if errors.Is(err, context.Canceled) {
		return interrupted(ctx, err)
	}
	return err
}

// isTerminal reports whether a file is a character device, and so most likely a terminal.
func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// defaults are the values behind ${…} in this package's tags.
func defaults() kong.Vars {
	stack, prices := devrun.DefaultConfig(), bench.DefaultS3Prices()
	price := func(dollars float64) string { return strconv.FormatFloat(dollars, 'f', -1, 64) }
	return kong.Vars{
		"s3_put_price": price(prices.Puts), "s3_get_price": price(prices.Gets), "s3_storage_price": price(prices.Storage),

		"sinks":     strings.Join(pipeline.DefaultSpec().Sinks, ","),
		"http_addr": stack.HTTPAddr, "grpc_addr": stack.GRPCAddr, "emit_to": "http://" + stack.HTTPAddr,
		"endpoint_addr": "127.0.0.1:50052", "endpoint_admin_addr": "127.0.0.1:9092",
		"replay_late": replay.DefaultConfig().Late.String(), "replay_retry_for": replay.DefaultConfig().RetryFor.String(),
		"bench_scenarios":      strings.Join(bench.Names(), ","),
		"endpoint_max_records": strconv.Itoa(endpoint.DefaultConfig().MaxRecords),
	}
}
