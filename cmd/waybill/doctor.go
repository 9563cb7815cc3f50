package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/waybillhq/waybill/internal/doctor"
	"github.com/waybillhq/waybill/internal/process"
	"github.com/waybillhq/waybill/sinks"
)

// doctorCommand asks the servers.
type doctorCommand struct {
	DatabaseURL string `name:"database-url" secret:"" want:"postgres" required:"" placeholder:"URL" help:"Postgres. WAYBILL_DATABASE_URL_FILE names a file that holds it."`
	process.NATS
	process.Lanes
	process.S3
	process.Ingress
	MaxEventBytes int           `want:"positive" default:"${max_event_bytes}" help:"Largest event that ingests take, encoded."`
	ExpiryMargin  time.Duration `want:"not-negative" default:"${expiry_margin}" help:"How far clocks may differ, as forwarders have it."`
	outputFlag
}

// Help says what is asked.
func (*doctorCommand) Help() string {
	return `Run it with the settings of the processes, best as the same users and on the same machines: Postgres (version, schema, privileges of the role, durability, connections, clock, room on its disk where that can be seen), NATS (version, max_payload, JetStream, streams and their settings and fill, consumers, clock, who is alive), the S3 bucket (conditional writes, lifecycle rules that would empty a lane, versioning, clock) and the ingress endpoint. It writes nothing but two small objects below the archive's prefix, which it deletes.`
}

// Check refuses settings with which nobody could be asked.
func (c *doctorCommand) Check() error { return errors.Join(c.S3.Check(), c.Ingress.Check()) }

// Run asks all of them and prints what it finds. It fails if something is a fail.
func (c *doctorCommand) Run(ctx context.Context, con *console) error {
	config, done, err := c.config(ctx)
	if err != nil {
		return err
	}
	defer done()
	findings := doctor.Examine(ctx, config)
	if ctx.Err() != nil {
		return interrupted(ctx, ctx.Err())
	}
	fails, warns := 0, 0
	for _, f := range findings {
		switch f.Level {
		case doctor.Fail:
			fails++
		case doctor.Warn:
			warns++
		case doctor.OK:
		}
	}
	if c.json() {
		for _, f := range findings {
			if err := c.print(con, "", f); err != nil {
				return err
			}
		}
	} else if err := c.write(con, findings); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(con.err, "%s, %s, %s\n", plural(len(findings), "check"), plural(warns, "warning"), plural(fails, "fault"))
	if fails > 0 {
		return fmt.Errorf("%s found: see the lines that begin with fail, and their remedies", plural(fails, "fault"))
	}
	return nil
}

func (c *doctorCommand) write(con *console, findings []doctor.Finding) error {
	table := tabwriter.NewWriter(con.out, 0, 0, 2, ' ', 0)
	for _, f := range findings {
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", f.Level, f.Server, f.Check, f.Found) // Flush tells
		if f.Remedy != "" {
			_, _ = fmt.Fprintf(table, "\t\t\tremedy: %s\n", f.Remedy)
		}
	}
	if c.S3Bucket == "" {
		_, _ = fmt.Fprintf(table, "-\ts3\t\tnot asked: --s3-bucket (WAYBILL_S3_BUCKET) is empty\n")
	}
	if c.IngressEndpoint == "" {
		_, _ = fmt.Fprintf(table, "-\tingress\t\tnot asked: --ingress-endpoint (WAYBILL_INGRESS_ENDPOINT) is empty\n")
	}
	return table.Flush()
}

// config is what package doctor wants; done closes what it opened.
func (c *doctorCommand) config(ctx context.Context) (config doctor.Config, done func(), err error) {
	config = doctor.Config{
		DatabaseURL: c.DatabaseURL, Lanes: c.Lanes.Lanes, MaxEventBytes: c.MaxEventBytes, ExpiryMargin: c.ExpiryMargin,
		NATS: func(ctx context.Context) (*nats.Conn, error) {
			_, nc, err := connectQueue(ctx, c.NATS, lookTimeout)
			return nc, err
		},
		Bucket: c.S3Bucket, Prefix: c.S3Prefix, IngressEndpoint: c.IngressEndpoint,
	}
	done = func() {}
	quiet := slog.New(slog.DiscardHandler)
	if c.S3Bucket != "" {
		if config.S3, err = c.Client(ctx); err != nil {
			return config, done, err
		}
		archive := sinks.DefaultArchiveConfig()
		archive.Bucket, archive.Prefix, archive.Log = c.S3Bucket, c.S3Prefix, quiet
		sink, err := sinks.NewArchive(config.S3, archive)
		if err != nil {
			return config, done, err
		}
		config.Probe = sink.Probe
	}
	if c.IngressEndpoint != "" {
		i := c.Ingress.Config()
		i.Log = quiet
		sink, err := sinks.NewIngress(i)
		if err != nil {
			return config, done, err
		}
		done = func() { _ = sink.Close() } // nothing is under way
		config.Ingress = func(ctx context.Context) error { _, err := sink.Ping(ctx); return err }
	}
	return config, done, nil
}
