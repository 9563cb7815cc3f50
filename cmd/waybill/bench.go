package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/waybillhq/waybill/internal/bench"
	"github.com/waybillhq/waybill/internal/cli"
	"github.com/waybillhq/waybill/internal/process"
)

// benchCommand measures a system.
type benchCommand struct {
	Scenario string `arg:"" enum:"${bench_scenarios}" help:"What to measure; see above."`

	Out      string `type:"path" env:"-" placeholder:"DIR" help:"Directory of the report. Default: .waybill/bench/SCENARIO-TIME."`
	KeepLogs bool   `env:"-" help:"Keep the logs of the processes beside the report."`

	Profile bool `env:"-" help:"Keep CPU profiles of Waybill's processes in each window beside the report (it costs a few percent)."`

	For    *time.Duration `env:"-" placeholder:"30s" help:"Measure each stage for so long."`
	WarmUp *time.Duration `env:"-" placeholder:"3s" help:"Let each stage warm up for so long before."`
	Rate   *float64       `env:"-" placeholder:"N" help:"Offer each stage N events a second, whatever becomes of them (open loop)."`
	Closed *int           `env:"-" placeholder:"N" help:"Let each stage have N callers that send as fast as they are answered (closed loop)."`
	Bytes  *int           `env:"-" placeholder:"N" help:"Bytes of data of an event."`
	Events *int           `env:"-" placeholder:"N" help:"Events of a call."`
	Keys   *int           `env:"-" placeholder:"N" help:"Number of keys, pairs of source and type."`

	Pending *int `env:"-" placeholder:"N" help:"Scenarios of the store: fill its tables with N rows, instead of several sizes in turn."`

	Part *string `env:"-" placeholder:"TEXT" help:"Scenarios store, embedded and outbox: only the parts that have this in their name, such as held, 10 callers or latency."`

	Runs *int `env:"-" placeholder:"5" help:"Scenarios that compare things measure each so often, in turn, and take the median."`

	Trace string   `type:"path" env:"-" placeholder:"FILE" help:"What trace-file replays: CSV with the header time,key,size and a row an event."`
	Speed *float64 `env:"-" placeholder:"1" help:"Let trace-file replay so many times as fast."`

	HTTPAddr     string `name:"http-addr" env:"-" placeholder:"URL" help:"Measure an existing system: URL of its ingest, such as http://10.0.0.5:8080."`
	GRPCAddr     string `name:"grpc-addr" env:"-" placeholder:"HOST:PORT" help:"The same ingest's gRPC address."`
	DatabaseURL  string `name:"database-url" env:"-" secret:"" want:"postgres" placeholder:"URL" help:"Its Postgres; without it: nothing of what is pending, nor of WAL."`
	NATSURL      string `name:"nats-url" env:"-" secret:"" want:"nats" placeholder:"URL" help:"Its NATS servers; without them: no depth of the queue."`
	EndpointAddr string `name:"endpoint-addr" env:"-" want:"address" placeholder:"HOST:PORT" help:"Where to listen for its forwarders, which must deliver here; without it: nothing of deliveries."`

	process.S3
	S3PutPrice     float64 `name:"s3-put-price" env:"-" default:"${s3_put_price}" help:"US dollars of 1,000 PUT or LIST requests, for what s3 reckons. Default: Amazon's, us-east-1."`
	S3GetPrice     float64 `name:"s3-get-price" env:"-" default:"${s3_get_price}" help:"US dollars of 1,000 GET requests."`
	S3StoragePrice float64 `name:"s3-storage-price" env:"-" default:"${s3_storage_price}" help:"US dollars of a gigabyte for a month."`
}

// Help lists the scenarios below the command's own line.
func (*benchCommand) Help() string {
	var b strings.Builder
	b.WriteString("Measures a system that it starts, or an existing one, checks that nothing was lost, and writes a report (docs/benchmarks.md).\n\nScenarios, whose stages the flags change where they are set:\n\n")
	for _, s := range bench.Scenarios() {
		fmt.Fprintf(&b, "%s: %s\n\n", s.Name, s.Help)
	}
	return b.String()
}

// Validate refuses flags that the scenario does not have.
func (c *benchCommand) Validate() error {
	scenario, err := bench.Find(c.Scenario)
	if err != nil {
		return err
	}
	if c.Rate != nil && c.Closed != nil {
		return errors.New("--rate and --closed: give one of them")
	}
	if c.Scenario != "trace-file" && (c.Trace != "" || c.Speed != nil) {
		return errors.New("--trace and --speed: only trace-file replays a file; leave them out")
	}
	if c.Part != nil && !scenario.HasParts() {
		return fmt.Errorf("--part: %s is measured as a whole; leave it out", c.Scenario)
	}
	if c.Pending != nil && c.Scenario != "store" && c.Scenario != "statements" {
		return errors.New("--pending: only store and statements begin with rows; leave it out")
	}
	if c.Runs != nil && !scenario.Compares() {
		return fmt.Errorf("--runs: %s compares nothing in turn; leave it out", c.Scenario)
	}
	if c.Scenario != "s3" && (c.S3Endpoint != "" || c.S3Bucket != "") {
		return errors.New("--s3-endpoint and --s3-bucket (WAYBILL_S3_ENDPOINT, WAYBILL_S3_BUCKET): only s3 measures a server that exists; leave them out")
	}
	return nil
}

// Run measures and writes the report.
func (c *benchCommand) Run(ctx context.Context, con *console) error {
	scenario, err := bench.Find(c.Scenario)
	if err != nil {
		return err
	}
	config, err := c.config(con)
	if err != nil {
		return err
	}
	screen := newScreen(con)
	config.Say = screen.line
	if con.terminal {
		config.Live = screen.live
		defer screen.end()
	}
	if err := scenario.Check(config); err != nil {
		return cli.WrongError{Err: err}
	}
	_, err = bench.Run(ctx, config, scenario)
	return interrupted(ctx, err)
}

func (c *benchCommand) config(con *console) (bench.Config, error) {
	config := bench.DefaultConfig()
	executable, err := os.Executable()
	if err != nil {
		return config, fmt.Errorf("find the waybill binary: %w", err)
	}
	out := c.Out
	if out == "" {
		out = filepath.Join(defaultDir, "bench", c.Scenario+"-"+time.Now().UTC().Format("20060102-150405"))
	}
	config.Dir, config.Executable, config.Env = out, executable, con.env
	config.KeepLogs, config.Profile = c.KeepLogs, c.Profile
	config.Command = append([]string{"waybill"}, os.Args[1:]...)
	config.Settings = bench.Settings{
		For: c.For, WarmUp: c.WarmUp, Rate: c.Rate, Callers: c.Closed, Bytes: c.Bytes, Events: c.Events, Keys: c.Keys, Runs: c.Runs, Pending: c.Pending, Part: c.Part,
		Trace: c.Trace, Speed: c.Speed,
	}
	config.S3 = c.S3
	config.S3Prices = bench.S3Prices{Puts: c.S3PutPrice, Gets: c.S3GetPrice, Storage: c.S3StoragePrice}
	given := bench.Given{
		HTTPURL: c.HTTPAddr, GRPCAddr: c.GRPCAddr, DatabaseURL: c.DatabaseURL, NATSURL: c.NATSURL, EndpointAddr: c.EndpointAddr,
	}
	if given != (bench.Given{}) {
		config.Given = &given
		return config, nil
	}
	if c.Scenario == "s3" { // it starts no system that could take up with others' servers
		return config, nil
	}
	return config, refuseForeignServers(os.LookupEnv)
}

// benchEchoCommand runs what an ingest is compared with, as a process of its own.
type benchEchoCommand struct {
	GRPCAddr string `name:"grpc-addr" required:"" env:"-" help:"Address of chipingress.pb.ChipIngress."`
	HTTPAddr string `name:"http-addr" required:"" env:"-" help:"Address of the HTTP handler."`
}

// Run serves until ctx ends.
func (c *benchEchoCommand) Run(ctx context.Context) error {
	return bench.RunEcho(ctx, c.GRPCAddr, c.HTTPAddr)
}
