package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/waybillhq/waybill/internal/pgconnect"
	"github.com/waybillhq/waybill/internal/process"
	"github.com/waybillhq/waybill/pipeline"
)

// migrateCommand creates or updates what a pipeline needs. It may be run again at any time,
// and by several at once.
type migrateCommand struct {
	DatabaseURL string `name:"database-url" secret:"" want:"postgres" required:"" placeholder:"URL" help:"Postgres, as postgres://user:password@host:port/database. WAYBILL_DATABASE_URL_FILE names a file that holds it."`
	process.NATS
	process.Lanes
	process.Streams
	Sinks        []string       `placeholder:"NAME,…" help:"Sinks that events must reach. Those that are missing are added; none is removed. Default: those that there are; of a new pipeline ${sinks}."`
	Grace        *time.Duration `help:"Time after which an event that is no longer queued is retransmitted. Default: what it is; of a new pipeline ${grace}."`
	DedupeWindow *time.Duration `help:"How long an accepted event is remembered, so that it is not stored again; 0: not at all. Default: what it is; of a new pipeline ${dedupe_window}."`
	ChangeLanes  bool           `env:"-" help:"Change the number of lanes to --lanes. Refused unless the pipeline is drained and all ingests, forwarders and janitors are stopped."`
	Wait         time.Duration  `env:"WAYBILL_MIGRATE_WAIT" want:"not-negative" default:"1m" help:"How long to wait for servers that are still starting."`
	outputFlag
}

// migrateResult is what there is now, as -o json prints it.
type migrateResult struct {
	Lanes        int      `json:"lanes"`
	LanesBefore  int      `json:"lanes_before,omitempty"` // where they were changed
	Grace        string   `json:"grace"`
	DedupeWindow string   `json:"dedupe_window"`
	Sinks        []string `json:"sinks"`
	QueueBytes   int64    `json:"queue_bytes"`
	ReceiptBytes int64    `json:"receipt_bytes"`
	Replicas     int      `json:"replicas"`
}

// say prints a line of the result for people, as soon as it is known.
func (c *migrateCommand) say(con *console, format string, args ...any) error {
	if c.json() {
		return nil
	}
	_, err := fmt.Fprintf(con.out, format+"\n", args...)
	return err
}

// Check refuses a pipeline and streams that cannot be made.
func (c *migrateCommand) Check() error {
	return errors.Join(c.spec().Validate(), c.QueueConfig().Validate())
}

func (c *migrateCommand) spec() pipeline.Spec {
	spec := pipeline.DefaultSpec()
	spec.Lanes = c.Lanes.Lanes
	// What is not named stays: an upgrade must not let events wait for a sink that nobody serves, nor forget sooner
	// what was accepted.
	spec.Kept = pipeline.Kept{Sinks: len(c.Sinks) == 0, Grace: c.Grace == nil, DedupeWindow: c.DedupeWindow == nil}
	if !spec.Kept.Sinks {
		spec.Sinks = c.Sinks
	}
	if !spec.Kept.Grace {
		spec.Grace = *c.Grace
	}
	if !spec.Kept.DedupeWindow {
		spec.DedupeWindow = *c.DedupeWindow
	}
	return spec
}

// Validate refuses to change the number of lanes to the default by accident.
func (c *migrateCommand) Validate(parsed *kong.Context) error {
	if c.ChangeLanes && guessed(parsed, "lanes") {
		return errors.New("--change-lanes: to how many? Give the new number with --lanes, or as WAYBILL_LANES")
	}
	return nil
}

// Run creates the tables and then the streams.
func (c *migrateCommand) Run(ctx context.Context, con *console) error {
	spec := c.spec()
	var result migrateResult
	deadline := time.Now().Add(c.Wait)
	if c.ChangeLanes {
		if err := c.changeLanes(ctx, con, time.Until(deadline), &result); err != nil {
			return fmt.Errorf("change lanes: %w", err)
		}
	}
	err := retry(ctx, deadline, postgresIsStarting, con, "Postgres", func() error {
		return pipeline.Migrate(ctx, c.DatabaseURL, spec)
	})
	if err != nil {
		return err
	}
	if err := c.printTables(ctx, con, &result); err != nil {
		return err
	}
	queue, nc, err := connectQueue(ctx, c.NATS, time.Until(deadline))
	if err != nil {
		return err
	}
	defer nc.Close()
	err = retry(ctx, deadline, jetStreamIsStarting, con, "JetStream", func() error {
		return c.ensureQueue(ctx, queue)
	})
	if err != nil {
		return err
	}
	q := c.QueueConfig()
	result.QueueBytes, result.ReceiptBytes, result.Replicas = q.MaxBytes, q.MaxReceiptBytes, q.Replicas
	if c.json() {
		return c.print(con, "", result)
	}
	return c.say(con, "NATS: streams %s (%d bytes) and %s (%d bytes), a consumer per sink and lane, four buckets; %s",
		pipeline.EventsStream, q.MaxBytes, pipeline.ReceiptsStream, q.MaxReceiptBytes, plural(q.Replicas, "replica"))
}

// changeLanes changes the number before the rest is brought up to date, which then finds it
// to be what it is configured for.
func (c *migrateCommand) changeLanes(ctx context.Context, con *console, wait time.Duration, result *migrateResult) error {
	queue, nc, err := connectQueue(ctx, c.NATS, wait)
	if err != nil {
		return err
	}
	defer nc.Close()
	done, err := pipeline.ChangeLanes(ctx, c.DatabaseURL, queue, c.Lanes.Lanes, func(line string) {
		_, _ = fmt.Fprintln(con.err, line)
	})
	if err != nil {
		return interrupted(ctx, err)
	}
	for _, intruder := range done.Intruders {
		_, _ = fmt.Fprintf(con.err, "started in the moment of the change, perhaps with the old number: %s, and start it again\n", intruder)
	}
	result.LanesBefore = done.From
	if done.From == done.To {
		return c.say(con, "lanes: %d, as before", done.To)
	}
	return c.say(con, "lanes: %d before, %d now; set WAYBILL_LANES=%d for every process and start them", done.From, done.To, done.To)
}

// ensureQueue creates streams, buckets and consumers.
func (c *migrateCommand) ensureQueue(ctx context.Context, queue *pipeline.Queue) error {
	store, err := openStore(ctx, c.DatabaseURL, c.Lanes.Lanes)
	if err != nil {
		return err
	}
	defer store.Close()
	return pipeline.EnsureQueue(ctx, c.QueueConfig(), store, queue, slog.New(slog.DiscardHandler))
}

func (c *migrateCommand) printTables(ctx context.Context, con *console, result *migrateResult) error {
	store, err := openStore(ctx, c.DatabaseURL, c.Lanes.Lanes)
	if err != nil {
		return err
	}
	defer store.Close()
	names, err := store.Sinks(ctx)
	if err != nil {
		return err
	}
	result.Lanes, result.Grace, result.DedupeWindow, result.Sinks = store.Lanes(), store.Grace().String(), store.DedupeWindow().String(), names
	return c.say(con, "Postgres: tables are up to date; %s, grace %v, dedupe window %v, sinks %s",
		plural(store.Lanes(), "lane"), store.Grace(), store.DedupeWindow(), strings.Join(names, ", "))
}

// retry calls f until it succeeds, fails for good or the deadline passes.
func retry(ctx context.Context, deadline time.Time, passing func(error) bool, con *console, what string, f func() error) error {
	for told := false; ; told = true {
		err := f()
		if err == nil || ctx.Err() != nil || !passing(err) || time.Now().After(deadline) {
			return err
		}
		if !told {
			_, _ = fmt.Fprintf(con.err, "waiting for %s, up to --wait (WAYBILL_MIGRATE_WAIT): %s\n", what, oneLine(pgconnect.Explain(err, databaseSetting).Error()))
		}
		pause(ctx, 500*time.Millisecond)
	}
}

// postgresIsStarting recognizes what may pass: nobody listens, or the server is starting or
// stopping. A server that answers otherwise, for instance that the password is wrong, means
// it.
func postgresIsStarting(err error) bool {
	var answer *pgconn.PgError
	if errors.As(err, &answer) {
		return strings.HasPrefix(answer.Code, "57P") || answer.Code == "53300"
	}
	var connect *pgconn.ConnectError
	return errors.As(err, &connect)
}

// jetStreamIsStarting recognizes a server, or a cluster without a leader, that needs some
// seconds more.
func jetStreamIsStarting(err error) bool {
	var api *jetstream.APIError
	if errors.As(err, &api) {
		return api.Code == 503
	}
	return errors.Is(err, nats.ErrNoResponders) || errors.Is(err, nats.ErrTimeout) || errors.Is(err, context.DeadlineExceeded)
}
