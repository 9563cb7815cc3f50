// Command waybill is the operator's: it starts the whole system on one machine, creates
// tables and streams, sends events, shows the state, reads the archive and handles dead
// letters.
//
//	waybill dev [--once N]              the whole system on this machine
//	waybill migrate                     create or update tables and streams; change the lanes
//	waybill emit [-]                    send events, from flags or NDJSON on standard input
//	waybill status                      what is pending, who works, what was given up
//	waybill trace ID                    where the time of one event went, over all processes
//	waybill lanes                       the queue of each sink, lane by lane
//	waybill lanes pause|resume          let lanes of a sink stand still, and go on
//	waybill tail                        events as they are queued
//	waybill expect                      wait for deliveries, or fail
//	waybill archive ls|cat|verify       list, print and check the archive
//	waybill audit                       account for every event that was accepted
//	waybill deadletters ls|show         look at what a sink refused or did not take in time
//	waybill deadletters requeue|purge   send it again, or delete it
//	waybill replay --sink SINK          deliver again what was accepted before
//	waybill doctor                      whether the servers are what is needed, and what to do
//	waybill config print                settings, without secrets, and where each came from
//	waybill bench SCENARIO              measure a system and check that it loses nothing
//	waybill endpoint                    a ChipIngress endpoint that records what it gets
//	waybill ingest|forwarder|janitor    the three processes, as the programs of these names
//	waybill healthcheck URL             for containers without a shell
//	waybill completion bash|zsh|fish    what lets a shell complete command lines
//	waybill version                     (also --version)
//
// docs/cli.md, which is made from the commands themselves, has each with all its flags,
// variables and defaults, where settings come from, and the exit codes.
//
// # Output
//
// Results go to standard output, everything else to standard error.
package main

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/waybillhq/waybill/internal/bench"
	"github.com/waybillhq/waybill/internal/cli"
	"github.com/waybillhq/waybill/internal/devrun"
	"github.com/waybillhq/waybill/internal/endpoint"
	"github.com/waybillhq/waybill/internal/pgconnect"
	"github.com/waybillhq/waybill/internal/process"
	"github.com/waybillhq/waybill/internal/replay"
	"github.com/waybillhq/waybill/internal/s3fault"
	"github.com/waybillhq/waybill/pipeline"
)

// commands is the command line.
type commands struct {
	Dev         devCommand         `cmd:"" set:"s3_endpoint_default=Existing S3-compatible server to archive to instead of a private one; variables must not name it." help:"Run the whole system on this machine."`
	Migrate     migrateCommand     `cmd:"" help:"Create or update the tables and the streams."`
	Emit        emitCommand        `cmd:"" help:"Send events."`
	Status      statusCommand      `cmd:"" help:"Show what is pending, who works and what was given up."`
	Trace       traceCommand       `cmd:"" help:"Show what each process did with an event, and where its time went."`
	Lanes       lanesCommand       `cmd:"" help:"Show the queue of each sink, lane by lane; pause and resume lanes."`
	Tail        tailCommand        `cmd:"" help:"Print events as they are queued."`
	Expect      expectCommand      `cmd:"" help:"Wait until events are delivered, or fail: an assertion for scripts and CI."`
	Archive     archiveCommand     `cmd:"" help:"Read the archive."`
	Audit       auditCommand       `cmd:"" help:"Account for every event that was accepted: it waits, is settled, archived or a dead letter; or is missing."`
	Deadletters deadlettersCommand `cmd:"" help:"Look at dead letters, queue them again, or delete them."`
	Replay      replayCommand      `cmd:"" help:"Deliver again, to one sink, what was accepted before."`
	Doctor      doctorCommand      `cmd:"" help:"Ask every server whether it is what Waybill needs, and say what to do where it is not."`
	Config      configCommand      `cmd:"" help:"Show settings and where they come from."`
	Ingest      process.Ingest     `cmd:"" help:"Run an ingest: take events and make them durable."`
	Forwarder   process.Forwarder  `cmd:"" help:"Run a forwarder: deliver queued events to the sinks."`
	Janitor     process.Janitor    `cmd:"" help:"Run a janitor: settle, retransmit, expire and tidy up."`
	Bench       benchCommand       `cmd:"" help:"Measure a system and check that it loses nothing."`
	BenchEcho   benchEchoCommand   `cmd:"" name:"bench-echo" hidden:"" help:"Run what waybill bench compares an ingest with."`
	Endpoint    endpointCommand    `cmd:"" help:"Run a ChipIngress endpoint that records what it gets."`
	NATSServer  natsServerCommand  `cmd:"" name:"nats-server" hidden:"" help:"Run the nats-server of waybill dev."`
	Proxy       proxyCommand       `cmd:"" hidden:"" help:"Spread connections over the containers of one name."`
	Healthcheck healthcheckCommand `cmd:"" help:"Ask a URL whether all is well."`
	Version     versionCommand     `cmd:"" help:"Print the version."`
	ShowVersion kong.VersionFlag   `name:"version" env:"-" help:"Print the version."`
	Completion  completionCommand  `cmd:"" help:"Print what lets a shell complete command lines: bash, zsh or fish."`
	Reference   referenceCommand   `cmd:"" hidden:"" help:"Write docs/cli.md."`
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
	completeLine(parser)
	parsed, err := parser.Parse(helped(os.Args[1:]))
	parser.FatalIfErrorf(stack.explain(err))
	cli.Exit("waybill", cli.RunUntilSignal(func(ctx context.Context) error { return run(ctx, parsed, stack, con) }))
}

// helped turns `help COMMAND`, as people try it, into `COMMAND --help`.
func helped(args []string) []string {
	if len(args) > 0 && args[0] == "help" {
		return append(slices.Clone(args[1:]), "--help")
	}
	return args
}

func newParser(stack *runningStack) (*kong.Kong, error) {
	parser, err := cli.NewParser("waybill", "Durable delivery of CloudEvents: the operator's command.", &commands{}, process.Defaults(), process.Checks(), defaults())
	if err != nil {
		return nil, err
	}
	withoutVariables(parser, "completion")
	return parser, kong.Resolvers(stack).Apply(parser)
}

// withoutVariables keeps variables from setting the flags of a command whose struct is a library's.
func withoutVariables(parser *kong.Kong, command string) {
	for _, node := range parser.Model.Children {
		if node.Name != command {
			continue
		}
		for _, flag := range node.Flags {
			flag.Envs, flag.Tag.Envs = nil, nil
		}
	}
}

func run(ctx context.Context, parsed *kong.Context, stack *runningStack, con *console) error {
	parsed.BindTo(ctx, (*context.Context)(nil))
	parsed.Bind(con)
	err := parsed.Run()
	if errors.Is(err, context.Canceled) {
		return interrupted(ctx, err)
	}
	return cli.Named(stack.explainFailure(explainServers(err, parsed), parsed), parsed)
}

// explainServers says of a server that a command could not use, once for all commands, what was tried and which flag
// names it.
func explainServers(err error, parsed *kong.Context) error {
	setting := ""
	for _, flag := range parsed.Flags() {
		if flag.Tag.Get("want") != "postgres" || flag.Target.String() == "" {
			continue
		}
		setting = "--" + flag.Name
		if len(flag.Envs) > 0 {
			setting += " (" + flag.Envs[0] + ")"
		}
	}
	err = pgconnect.Explain(err, setting)
	if bucket, ok := parsed.Selected().Target.Addr().Interface().(interface{ Where() string }); ok { // it embeds process.S3
		err = s3fault.Explain(err, bucket.Where(), s3fault.Default())
	}
	return err
}

// isTerminal reports whether a file is a character device other than /dev/null, and so most likely a terminal.
func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	if err != nil || info.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(info, null)
}

// defaults are the values behind ${…} in this package's tags.
func defaults() kong.Vars {
	stack, prices := devrun.DefaultConfig(), bench.DefaultS3Prices()
	price := func(dollars float64) string { return strconv.FormatFloat(dollars, 'f', -1, 64) }
	return kong.Vars{
		"s3_put_price": price(prices.Puts), "s3_get_price": price(prices.Gets), "s3_storage_price": price(prices.Storage),

		"version":   cli.BuiltFrom().Text("waybill"),
		"sinks":     strings.Join(pipeline.DefaultSpec().Sinks, ","),
		"http_addr": stack.HTTPAddr, "grpc_addr": stack.GRPCAddr, "emit_to": "http://" + stack.HTTPAddr,
		"endpoint_addr": "127.0.0.1:50052", "endpoint_admin_addr": "127.0.0.1:9092",
		"replay_late": replay.DefaultConfig().Late.String(), "replay_retry_for": replay.DefaultConfig().RetryFor.String(),
		"bench_scenarios":      strings.Join(bench.Names(), ","),
		"kept_spans":           strconv.Itoa(keptSpans),
		"endpoint_max_records": strconv.Itoa(endpoint.DefaultConfig().MaxRecords),
	}
}
