package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/waybillhq/waybill/internal/cli"
	"github.com/waybillhq/waybill/internal/netfault"
	"github.com/waybillhq/waybill/internal/process"
	"github.com/waybillhq/waybill/internal/replay"
	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/sinks"
)

// replayCommand delivers again, to one sink, what was accepted before (docs/replay.md).
//
// The result goes to standard output, progress and warnings to standard error. The status is 0 when
// every event was delivered, or would be; 3 when it is done, but one was refused or missing at the
// source; 1 when the sink took nothing for too long, and after an interruption.
type replayCommand struct {
	Sink string `env:"-" required:"" enum:"ingress,archive" help:"Where the events go: ingress, the ChipIngress endpoint; or archive, under a prefix of the replay's own."`
	From string `env:"-" enum:"auto,stream,archive" default:"auto" help:"Where they are read: stream, archive, or auto: the stream if it reaches back to --since, else the archive."`

	Since  replay.Point  `env:"-" placeholder:"TIME" help:"Only what was accepted at or after this: a time such as 2026-11-25T08:00:00Z, or how long ago, such as 24h. A number is a sequence of the stream. Default: from the beginning."`
	Until  replay.Point  `env:"-" placeholder:"TIME" help:"Only what was accepted before this, in the same form; of sequences the last one. Default: to the end as it is now."`
	Lane   []int         `env:"-" want:"lane" help:"Only these lanes."`
	Source string        `env:"-" help:"Only of this source; with an asterisk at its end, of those that begin so."`
	Type   string        `env:"-" help:"Only of this type; with an asterisk at its end, of those that begin so."`
	Late   time.Duration `env:"-" default:"${replay_late}" help:"From the archive, with --until: how long after it was accepted an event may have been archived and still be looked for."`

	Name     string        `env:"-" help:"Name of the replay, which every event carries as replayid. The same command goes on where it stopped. Default: one made of the time, which cannot be resumed."`
	DryRun   bool          `env:"-" help:"Only say how many events there are."`
	Rate     float64       `env:"-" default:"0" placeholder:"N" help:"At most N events a second; 0: as many as can be."`
	RetryFor time.Duration `env:"-" default:"${replay_retry_for}" help:"How long a request is tried again while the sink takes nothing of it."`

	replayTarget
	process.NATS
	process.S3
	process.Ingress
	outputFlag
}

// replayTarget is another place than that of the live path.
type replayTarget struct {
	ToIngressEndpoint string `env:"-" placeholder:"HOST:PORT" help:"Another endpoint than --ingress-endpoint. The other flags of --ingress- are of this one."`
	ToS3Bucket        string `name:"to-s3-bucket" env:"-" placeholder:"BUCKET" help:"Another bucket than the archive's."`
	ToS3Prefix        string `name:"to-s3-prefix" env:"-" placeholder:"PREFIX" help:"Prefix of the keys. Default: <prefix of the archive>/replays/<name>."`
	ToS3Endpoint      string `name:"to-s3-endpoint" env:"-" placeholder:"URL" help:"Another S3 server than the archive's, with keys of its own."`
	ToS3Region        string `name:"to-s3-region" env:"-" placeholder:"REGION" help:"Another region than the archive's."`
	ToS3AccessKey     string `name:"to-s3-access-key" env:"WAYBILL_TO_S3_ACCESS_KEY" secret:"" help:"Access key of the other bucket. Default: the archive's, or with --to-s3-endpoint the AWS SDK's usual sources."`
	ToS3SecretKey     string `name:"to-s3-secret-key" env:"WAYBILL_TO_S3_SECRET_KEY" secret:"" help:"Secret key of the other bucket; WAYBILL_TO_S3_SECRET_KEY_FILE names a file that holds it."`
}

// archive reports that another place of an archive is named.
func (t replayTarget) archive() bool {
	t.ToIngressEndpoint = ""
	return t != replayTarget{}
}

// Validate refuses flags that do not go together.
func (c *replayCommand) Validate() error {
	switch {
	case c.Name != "" && replay.ValidateName(c.Name) != nil:
		return fmt.Errorf("--%w", replay.ValidateName(c.Name))
	case c.Sink == ingressSink && c.replayTarget.archive():
		return errors.New("--to-s3-…: is where --sink=archive writes; leave it out, or give --to-ingress-endpoint")
	case c.Sink == archiveSink && c.ToIngressEndpoint != "":
		return errors.New("--to-ingress-endpoint: is where --sink=ingress sends; leave it out, or give --to-s3-bucket")
	case c.ToIngressEndpoint != "" && !isHostPort(c.ToIngressEndpoint):
		return fmt.Errorf("--to-ingress-endpoint: %q; want host:port", c.ToIngressEndpoint)
	case c.Sink == ingressSink && c.ToIngressEndpoint == "" && c.IngressEndpoint == "" && !c.DryRun:
		return errors.New("--ingress-endpoint: is empty; name the endpoint, there or as --to-ingress-endpoint")
	case c.Sink == archiveSink && c.ToS3Bucket == "" && c.S3Bucket == "" && !c.DryRun:
		return errors.New("--s3-bucket: is empty; name the bucket, there or as --to-s3-bucket")
	case c.From == replay.FromArchive && c.S3Bucket == "":
		return errors.New("--s3-bucket: is empty; name the bucket of the archive that is to be read")
	}
	return nil
}

// Check refuses settings with which nothing could be read or delivered.
func (c *replayCommand) Check() error {
	to := c.Ingress
	if to.IngressEndpoint = c.endpoint(); c.Sink != ingressSink {
		to.IngressEndpoint = ""
	}
	return errors.Join(c.S3.Check(), to.Check())
}

func isHostPort(addr string) bool {
	_, _, err := net.SplitHostPort(addr)
	return err == nil
}

// Run delivers or counts.
func (c *replayCommand) Run(ctx context.Context, con *console) error {
	config, closeAll, err := c.config(ctx, con)
	defer closeAll()
	if err != nil {
		return err
	}
	screen := &screen{out: con.err, terminal: con.watches}
	config.Warn = func(text string) { screen.line("waybill: " + text) }
	r, err := replay.New(config)
	if err != nil {
		return cli.WrongError{Err: fmt.Errorf("--%w", err)} // its settings are named like the flags
	}
	if config.Sink != nil {
		if err := c.probe(ctx, config); err != nil {
			return interrupted(ctx, err)
		}
	}
	began := time.Now()
	show := showReplay(r, screen, c.DryRun)
	result, err := c.run(ctx, r)
	show()
	report := replayReport{
		Name: config.Name, Sink: c.Sink, Target: config.Target, DryRun: c.DryRun, Took: time.Since(began).Seconds(), Result: result,
	}
	if err != nil {
		return c.failure(err, report)
	}
	if err := c.print(con, strings.TrimSuffix(report.text(), "\n"), report); err != nil {
		return err
	}
	return report.verdict()
}

func (c *replayCommand) run(ctx context.Context, r *replay.Replay) (replay.Result, error) {
	if c.DryRun {
		return r.Count(ctx)
	}
	return r.Run(ctx)
}

// config connects to what is needed. closeAll is never nil.
func (c *replayCommand) config(ctx context.Context, con *console) (config replay.Config, closeAll func(), err error) {
	var closers []func()
	closeAll = func() {
		for _, f := range closers {
			f()
		}
	}
	config = replay.DefaultConfig()
	config.Name, config.Resumable = c.Name, c.Name != "" && !c.DryRun
	if c.Name == "" {
		config.Name = "replay-" + time.Now().UTC().Format("20060102T150405")
	}
	config.From, config.Since, config.Until, config.Late = c.From, c.Since, c.Until, c.Late
	config.Filter = replay.Filter{Lanes: c.Lane, Source: c.Source, Type: c.Type}
	config.Rate, config.RetryFor = c.Rate, c.RetryFor
	if c.S3Bucket != "" && c.From != replay.FromStream {
		if config.Archive, err = c.ArchiveReader(ctx); err != nil {
			return config, closeAll, err
		}
	}
	if c.From != replay.FromArchive || config.Resumable {
		queue, nc, err := connectQueue(ctx, c.NATS, lookTimeout)
		switch {
		case err == nil:
			closers = append(closers, nc.Close)
			config.Queue = queue
		case c.From != replay.FromAuto || config.Resumable || config.Archive == nil || ctx.Err() != nil:
			return config, closeAll, interrupted(ctx, err)
		default:
			_, _ = fmt.Fprintf(con.err, "waybill: the stream cannot be read, so the archive is: %v\n", err)
		}
	}
	if err := c.checkLanes(ctx, con, config); err != nil {
		return config, closeAll, interrupted(ctx, err)
	}
	if c.DryRun {
		return config, closeAll, nil
	}
	log := slog.New(slog.NewTextHandler(con.err, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if c.Sink == archiveSink {
		config.Sink, config.Target, err = c.archiveSink(ctx, config.Name, log)
		return config, closeAll, err
	}
	ingress, err := c.ingressSink(log)
	if err != nil {
		return config, closeAll, err
	}
	closers = append(closers, func() { _ = ingress.Close() }) // nothing is under way any more
	config.Sink, config.Target = ingress, c.endpoint()
	return config, closeAll, nil
}

// checkLanes refuses lanes that neither the pipeline nor the archive has. Of an archive alone it is not known which
// lanes its pipeline has: it warns of those that are not there.
func (c *replayCommand) checkLanes(ctx context.Context, con *console, config replay.Config) error {
	if len(c.Lane) == 0 {
		return nil
	}
	of, former, unknown := 0, []int(nil), errors.New("there is no stream")
	if config.Queue != nil {
		of, former, unknown = config.Queue.Lanes(ctx)
	}
	if unknown == nil {
		if err := checkLanes(c.Lane, of, former); err == nil || config.Archive == nil {
			return err
		}
	}
	if config.Archive == nil {
		return unknown
	}
	archived, err := config.Archive.Lanes(ctx)
	if err != nil {
		return err
	}
	if unknown == nil {
		return checkLanes(c.Lane, of, append(former, archived...))
	}
	for _, lane := range c.Lane {
		if !slices.Contains(archived, lane) {
			_, _ = fmt.Fprintf(con.err, "waybill: --lane: nothing is archived of lane %d: the archive has the lanes %s\n", lane, ranges(archived))
		}
	}
	return nil
}

func (c *replayCommand) endpoint() string {
	if c.ToIngressEndpoint != "" {
		return c.ToIngressEndpoint
	}
	return c.IngressEndpoint
}

// endpointSetting is the flag that names the endpoint.
func (c *replayCommand) endpointSetting() string {
	if c.ToIngressEndpoint != "" {
		return "--to-ingress-endpoint"
	}
	return "--ingress-endpoint (WAYBILL_INGRESS_ENDPOINT)"
}

func (c *replayCommand) ingressSink(log *slog.Logger) (*sinks.Ingress, error) {
	config := c.Ingress.Config()
	config.Log = log
	config.Endpoint = c.endpoint()
	// An event that the endpoint chokes on is to be reported before the replay is given up.
	config.UnknownFor = c.RetryFor / 2
	return sinks.NewIngress(config)
}

// target is where the archive of the replay is.
func (c *replayCommand) target(name string) process.S3 {
	to := c.S3
	if c.ToS3Endpoint != "" && c.ToS3Endpoint != c.S3Endpoint {
		to.S3Endpoint, to.S3AccessKey, to.S3SecretKey = c.ToS3Endpoint, "", ""
	}
	if c.ToS3AccessKey != "" || c.ToS3SecretKey != "" {
		to.S3AccessKey, to.S3SecretKey = c.ToS3AccessKey, c.ToS3SecretKey
	}
	if c.ToS3Region != "" {
		to.S3Region = c.ToS3Region
	}
	if c.ToS3Bucket != "" {
		to.S3Bucket = c.ToS3Bucket
	}
	to.S3Prefix = replay.ArchivePrefix(c.S3Prefix, name)
	if c.ToS3Prefix != "" {
		to.S3Prefix = c.ToS3Prefix
	}
	return to
}

// archiveSink returns the archive of the replay, and where it is.
func (c *replayCommand) archiveSink(ctx context.Context, name string, log *slog.Logger) (pipeline.Sink, string, error) {
	to := c.target(name)
	if strings.TrimRight(to.S3Endpoint, "/") == strings.TrimRight(c.S3Endpoint, "/") && to.S3Bucket == c.S3Bucket && to.S3Prefix == c.S3Prefix {
		return nil, "", fmt.Errorf("--to-s3-prefix: %s is that of the live archive, which a replay must not write to; give another one", to.S3Prefix)
	}
	client, err := to.Client(ctx)
	if err != nil {
		return nil, "", c.replayTarget.named(err)
	}
	config := replay.ArchiveConfig(to.S3Bucket, to.S3Prefix)
	config.Log = log
	archive, err := sinks.NewArchive(client, config)
	server := to.S3Endpoint
	if server == "" {
		server = "AWS " + to.S3Region
	}
	return archive, fmt.Sprintf("s3://%s/%s at %s", to.S3Bucket, to.S3Prefix, server), c.replayTarget.named(err)
}

// probe tries the sink, and refuses a live archive, of whatever pipeline and by whatever name of its
// server.
func (c *replayCommand) probe(ctx context.Context, config replay.Config) error {
	err := config.Sink.Probe(ctx)
	if c.Sink != archiveSink {
		if err != nil {
			if reason, ok := netfault.Undialed(err.Error()); ok {
				err = errors.New(reason)
			}
			return fmt.Errorf("connect to the endpoint at %s: %w; start it, or correct %s", config.Target, err, c.endpointSetting())
		}
		return nil
	}
	to := c.target(config.Name)
	if err != nil {
		return c.replayTarget.failed(err, to)
	}
	reader, err := to.ArchiveReader(ctx)
	if err != nil {
		return err
	}
	foreign, err := replay.Foreign(ctx, reader)
	if err != nil {
		return c.replayTarget.failed(err, to)
	}
	if foreign != "" {
		return fmt.Errorf("--to-s3-prefix: in %s is %s, so it is that of a live archive, which a replay must not write to; give another one", config.Target, foreign)
	}
	return nil
}

// failure says how far the replay came, and how to go on.
func (c *replayCommand) failure(err error, r replayReport) error {
	if c.DryRun || r.From == "" { // it had not begun
		return err
	}
	if reason, ok := netfault.Undialed(err.Error()); ok && c.Sink == ingressSink {
		err = fmt.Errorf("the endpoint at %s took nothing for %v: %s; start it, or correct %s", r.Target, c.RetryFor, reason, c.endpointSetting())
	}
	done := fmt.Sprintf("%s delivered", plural64(r.Events, "event"))
	if r.Resumed > 0 {
		done += fmt.Sprintf(", %d of them before", r.Resumed)
	}
	if errors.Is(err, pipeline.ErrReplayTaken) {
		return fmt.Errorf("%w (%s)", err, done)
	}
	if c.Name == "" {
		return fmt.Errorf("%w (%s; without --name it cannot be resumed: with one, the same command goes on where it stopped)", err, done)
	}
	return fmt.Errorf("%w (%s; the same command goes on from there: waybill replay --name=%s …; what was under way is sent again)", err, done, c.Name)
}
