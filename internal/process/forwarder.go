package process

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/waybillhq/waybill/pipeline"
)

// Forwarder takes lanes of the queue and delivers them to the sinks. It does not use
// Postgres.
type Forwarder struct {
	Logging
	Identity
	Memory
	NATS
	Lanes
	Ingress
	Archive

	InFlight     int           `want:"positive" help:"Most requests in flight per sink." default:"${in_flight}"`
	ExpiryMargin time.Duration `want:"not-negative" help:"How long after an event expired it is still delivered: clocks differ." default:"${expiry_margin}"`
	StopTimeout  time.Duration `want:"positive" help:"How long a stop may take." default:"${stop_timeout}"`
}

// Check names the settings that cannot work, before anything is waited for.
func (c *Forwarder) Check() error {
	errs := []error{c.Lanes.validate(), c.config().ValidateLimits(), c.Ingress.Check(), c.S3.Check()}
	if c.S3Bucket != "" {
		errs = append(errs, c.Archive.config().Validate())
	}
	if c.IngressEndpoint == "" && c.S3Bucket == "" {
		errs = append(errs, errNoSink)
	}
	return errors.Join(errs...)
}

var errNoSink = errors.New("it has no sink to deliver to: give --ingress-endpoint (WAYBILL_INGRESS_ENDPOINT), --s3-bucket (WAYBILL_S3_BUCKET), or both")

// config lacks what is known once the process runs.
func (c *Forwarder) config() pipeline.ForwarderConfig {
	f := pipeline.DefaultForwarderConfig()
	f.Version, f.Lanes = version(), c.Lanes.Lanes
	f.InFlight, f.ExpiryMargin, f.StopTimeout = c.InFlight, c.ExpiryMargin, c.StopTimeout
	return f
}

// Run runs a forwarder until ctx ends.
func (c *Forwarder) Run(ctx context.Context) error {
	if err := c.Check(); err != nil {
		return err
	}
	log := c.log(c.Logging, pipeline.KindForwarder)
	c.Memory.limit()
	return withAdmin(ctx, c.Identity, pipeline.KindForwarder, log, func(ctx context.Context, adm *admin) error {
		return c.run(ctx, adm, log)
	})
}

func (c *Forwarder) run(ctx context.Context, adm *admin, log *slog.Logger) error {
	id := adm.id
	if err := adm.export(c); err != nil {
		return err
	}
	spans, stopTracing, err := startTracing(ctx, pipeline.KindForwarder, c.Identity, id, log)
	if err != nil {
		return err
	}
	defer stopTracing()
	queue, nc, err := c.connect("waybill-forwarder-"+id, log)
	if err != nil {
		return err
	}
	defer nc.Close()
	destinations, closeSinks, err := c.sinks(ctx, queue, adm, log)
	defer closeSinks()
	if err != nil {
		return err
	}
	cfg := c.config()
	cfg.ID, cfg.Tracing = id, spans
	for _, d := range destinations {
		cfg.Sinks = append(cfg.Sinks, d)
	}
	if c.Host != nil && c.Host.Forwarder != nil {
		c.Host.Forwarder(&cfg)
	}
	forwarder, err := pipeline.NewForwarder(cfg, queue, log, adm.meter("waybill/forwarder"))
	if err != nil {
		return err
	}
	adm.checks.Add("nats", queue.Connected)
	adm.checks.Add("queue", forwarder.Ready)
	adm.checks.Degrade("delivery", forwarder.Problems)
	adm.checks.Watch(forwarder.Buffers)
	log.Info("forwarder runs", "id", id, "lanes", c.Lanes.Lanes, "admin", adm.listener.Addr().String())
	adm.running(c.Identity, Running{})
	group, ctx := errgroup.WithContext(ctx)
	for _, d := range destinations {
		group.Go(func() error { return d.probe(ctx, log) })
	}
	group.Go(func() error { return forwarder.Run(ctx) })
	return group.Wait()
}

// sinks makes the sinks that this process is configured for. closeAll is never nil.
func (c *Forwarder) sinks(ctx context.Context, queue *pipeline.Queue, adm *admin, log *slog.Logger) (made []*probedSink, closeAll func(), err error) {
	closeAll = func() {}
	if c.IngressEndpoint != "" {
		ingress, err := c.Ingress.sink(log, adm.meter("waybill/ingress"))
		if err != nil {
			return nil, closeAll, err
		}
		closeAll = func() {
			if err := ingress.Close(); err != nil {
				log.Warn("close the ingress connections", "error", err)
			}
		}
		made = append(made, newProbedSink(ingress))
	}
	if c.S3Bucket != "" {
		archive, err := c.Archive.sink(ctx, queue, log, adm.meter("waybill/archive"))
		if err != nil {
			return nil, closeAll, err
		}
		made = append(made, newProbedSink(archive))
	}
	return made, closeAll, nil
}
