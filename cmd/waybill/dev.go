package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/waybillhq/waybill/internal/cli"
	"github.com/waybillhq/waybill/internal/devrun"
	"github.com/waybillhq/waybill/internal/devstack"
	"github.com/waybillhq/waybill/internal/process"
)

// onceLinger is how long an archive object waits to be filled where somebody waits for it.
const onceLinger = 500 * time.Millisecond

// keptSpans are those of some 3,000 events. They take about 50 MiB, of this process.
const keptSpans = 30_000

// devCommand runs the whole system on this machine.
type devCommand struct {
	Dir  string `type:"path" help:"Directory of data and logs; a later start on it goes on where it was. Default: .waybill, and with --once a temporary one."`
	Keep bool   `env:"-" help:"Keep the temporary directory of --once."`
	Once *int   `env:"-" placeholder:"N" help:"Send N events, wait until all are settled, read them back from both sinks, and end with status 0 only when nothing is missing or wrong."`

	Ports      string `enum:"auto,fixed,free" default:"auto" help:"fixed: the addresses below; free: any free ports, the same ones in later starts; auto: fixed, and free with --once."`
	HTTPAddr   string `name:"http-addr" env:"WAYBILL_HTTP_ADDR" want:"address" default:"${http_addr}" help:"Address of POST /v1/events."`
	GRPCAddr   string `name:"grpc-addr" env:"WAYBILL_GRPC_ADDR" want:"address" default:"${grpc_addr}" help:"Address of chipingress.pb.ChipIngress."`
	Ingests    int    `default:"1" help:"Number of ingests; further ones get free ports."`
	Forwarders int    `default:"1" help:"Number of forwarders."`
	Janitors   int    `default:"1" help:"Number of janitors."`
	process.Lanes
	KeepSpans int `env:"-" placeholder:"N" default:"${kept_spans}" help:"How many of the newest spans to keep for waybill trace, unless OTEL_* variables send them elsewhere; 0: none, and nothing is traced. With --once none."`

	DatabaseURL     string `name:"database-url" env:"-" secret:"" want:"postgres" placeholder:"URL" help:"Postgres to use instead of a private one."`
	NATSURL         string `name:"nats-url" env:"-" secret:"" want:"nats" placeholder:"URL" help:"NATS server to use instead of a private one."`
	IngressEndpoint string `env:"-" placeholder:"HOST:PORT" help:"ChipIngress endpoint to deliver to instead of a private one."`
	EndpointAdmin   string `env:"-" placeholder:"URL" help:"Admin address of the existing endpoint, if it is a waybill endpoint; --once reads back from it."`
	process.S3      `set:"s3_bucket_default=empty: waybill"`
}

// Validate refuses flags that cannot work together.
func (c *devCommand) Validate() error {
	switch {
	case c.Once != nil && *c.Once < 1:
		return fmt.Errorf("--once: %d; want a number of events, or leave it out for a system that runs until it is interrupted", *c.Once)
	case c.Once != nil && c.IngressEndpoint != "" && c.EndpointAdmin == "":
		return errors.New("--once reads events back from the endpoint: leave --ingress-endpoint out, or give --endpoint-admin too")
	}
	return nil
}

// Check refuses a system that cannot be.
func (c *devCommand) Check() error {
	config := c.settings()
	config.Dir, config.Executable, config.Say = defaultDir, "waybill", func(string) {} // which Run finds out
	existing := c.S3
	if existing.S3Endpoint != "" && existing.S3Bucket == "" {
		existing.S3Bucket = "waybill" // as the stack has it
	}
	return errors.Join(config.Validate(), existing.Check())
}

// Run starts the system and shows it until ctx ends, or sends events through it once.
func (c *devCommand) Run(ctx context.Context, con *console) (err error) {
	if err := refuseForeignServers(os.LookupEnv); err != nil {
		return err
	}
	dir, temporary, err := c.directory()
	if err != nil {
		return err
	}
	lock, err := devstack.LockDir(dir)
	if errors.Is(err, devstack.ErrDirInUse) {
		err = fmt.Errorf("%w with --dir (WAYBILL_DIR), and --ports=free beside another system", err)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	screen := newScreen(con)
	config, err := c.config(dir, con, screen)
	if err != nil {
		return err
	}
	stack, err := devrun.New(config)
	if err != nil {
		return err
	}
	if temporary {
		defer func() { err = errors.Join(err, stack.Remove()) }()
	}
	began := time.Now()
	screen.line("starting in " + dir)
	if err := stack.Start(ctx); err != nil {
		return c.ended(ctx, err)
	}
	screen.line(fmt.Sprintf("ready after %.1f s", time.Since(began).Seconds()))
	return c.use(ctx, con, screen, stack)
}

// ended is err, but that to be interrupted is the proper end of a system that has no other.
func (c *devCommand) ended(ctx context.Context, err error) error {
	if c.Once == nil && ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// refuseForeignServers keeps a development system away from servers that somebody exported
// the address of for another purpose: half of it on those and half on private ones would
// deliver what waits there to an endpoint that forgets it. Existing servers are used where a
// flag names them.
func refuseForeignServers(lookup func(string) (string, bool)) error {
	for _, name := range []string{"WAYBILL_DATABASE_URL", "WAYBILL_NATS_URL", "WAYBILL_INGRESS_ENDPOINT", "WAYBILL_S3_ENDPOINT", "WAYBILL_S3_BUCKET"} {
		for _, variable := range []string{name, name + "_FILE"} {
			if value, _ := lookup(variable); value != "" {
				return cli.WrongError{Err: fmt.Errorf("%s is set, and `waybill dev` takes existing servers from flags only: unset it, or name the server with a flag", variable)}
			}
		}
	}
	return nil
}

// use watches over a started stack while it is used, and stops it.
func (c *devCommand) use(ctx context.Context, con *console, screen *screen, stack *devrun.Stack) error {
	watched, stopWatching := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { stack.Run(watched) })
	var err error
	if c.Once != nil {
		err = c.once(ctx, con, screen, stack)
	} else {
		err = c.ended(ctx, show(ctx, con, screen, stack))
	}
	stopWatching()
	wg.Wait()
	screen.line("stopping")
	err = errors.Join(err, stack.Stop())
	if err == nil {
		screen.line("stopped")
	}
	return err
}

// directory returns where the data goes, and whether it is to be deleted in the end.
func (c *devCommand) directory() (dir string, temporary bool, err error) {
	if c.Dir != "" || c.Once == nil {
		dir := c.Dir
		if dir == "" {
			dir = defaultDir
		}
		dir, err := filepath.Abs(dir)
		return dir, false, err
	}
	dir, err = os.MkdirTemp("", "waybill-once-")
	if err != nil {
		return "", false, fmt.Errorf("make a temporary directory: %w", err)
	}
	// Postgres may have to run as another user, who must get in.
	return dir, !c.Keep, os.Chmod(dir, 0o755)
}

func (c *devCommand) config(dir string, con *console, screen *screen) (devrun.Config, error) {
	config := c.settings()
	executable, err := os.Executable()
	if err != nil {
		return config, fmt.Errorf("find the waybill binary: %w", err)
	}
	config.Dir, config.Executable, config.Env, config.Say = dir, executable, con.env, screen.line
	return config, nil
}

// settings are those that flags have.
func (c *devCommand) settings() devrun.Config {
	config := devrun.DefaultConfig()
	config.HTTPAddr, config.GRPCAddr = c.HTTPAddr, c.GRPCAddr
	config.FreePorts = c.Ports == "free" || (c.Ports == "auto" && c.Once != nil)
	config.Ingests, config.Forwarders, config.Janitors = c.Ingests, c.Forwarders, c.Janitors
	config.Lanes = c.Lanes.Lanes
	config.DatabaseURL, config.NATSURL = c.DatabaseURL, c.NATSURL
	config.IngressEndpoint, config.EndpointAdmin, config.S3 = c.IngressEndpoint, c.EndpointAdmin, c.S3
	config.KeepSpans = c.KeepSpans
	if c.Once != nil {
		config.ArchiveLinger, config.KeepSpans = onceLinger, 0
	}
	return config
}

// show prints what there is and how to use it, and then what happens, until ctx ends.
func show(ctx context.Context, con *console, screen *screen, stack *devrun.Stack) error {
	if err := introduce(con, stack); err != nil {
		return err
	}
	return watch(ctx, screen, stack)
}

func introduce(con *console, stack *devrun.Stack) error {
	table := tabwriter.NewWriter(con.out, 0, 0, 3, ' ', 0)
	_, _ = fmt.Fprintln(table) // Flush tells
	for _, part := range stack.Parts() {
		_, _ = fmt.Fprintf(table, "  %s\tprocess %d\t%s\n", part.Name, part.PID, part.Where)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	received := "what the receiving endpoint got"
	if stack.EndpointAdmin != "" {
		received = fmt.Sprintf("curl '%s/events?since=0'   # kept in memory only", stack.EndpointAdmin)
	}
	self, err := ofDirectory(os.Args[0], filepath.Dir(stack.AdminPath()))
	if err != nil {
		return err
	}
	traces := "waybill's spans go where the OTEL_* variables say, or nowhere"
	if stack.TraceQueryURL != "" {
		traces = fmt.Sprintf("%s trace 1   # of every event; the newest spans are kept, in memory only. Jaeger's query API is at %s", self, stack.TraceQueryURL)
	}
	_, err = fmt.Fprintf(con.out, `
send an event
  curl -i %[1]s/v1/events -H 'Content-Type: application/cloudevents+json' -d '{"specversion":"1.0","id":"1","source":"/demo","type":"demo.hello","data":{"hello":"world"}}'
  grpcurl -plaintext -d '{"id":"2","source":"/demo","spec_version":"1.0","type":"demo.hello","text_data":"hello"}' %[2]s chipingress.pb.ChipIngress/Publish
  %[3]s emit --count 10

see it arrive
  %[4]s
  %[3]s archive cat
  %[3]s status

see where its time went
  %[5]s

look at a process
  . %[6]s; curl -s $forwarder_1/readyz   # and /metrics; of the others too

Kill any of these processes: it is started again. Ctrl-C stops all of them.

`, stack.HTTP[0], stack.GRPC[0], self, received, traces, shellWord(stack.AdminPath()))
	return err
}

// ofDirectory is a command as a shell takes it, that finds the stack in dir: where that is not the one that it looks
// into by itself, with the variable that names it.
func ofDirectory(command, dir string) (string, error) {
	usual, err := filepath.Abs(defaultDir)
	if err != nil {
		return "", fmt.Errorf("find the working directory: %w", err)
	}
	command = shellWord(command)
	if dir != usual {
		command = "WAYBILL_DIR=" + shellWord(dir) + " " + command
	}
	return command, nil
}

// shellWord is a text as one word of a shell, in quotes only where it needs them.
func shellWord(text string) string {
	if text != "" && !strings.ContainsFunc(text, func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("/._-+,:@%", r)
	}) {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}
