package process

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/waybillhq/waybill/pipeline"
)

// Janitor settles deliveries, retransmits what fell out of the queue, moves what expired
// to dead_letters, and keeps streams and consumers in order.
type Janitor struct {
	Logging
	Identity
	Memory
	Database
	NATS
	Lanes
	Streams

	ReplayWindow    time.Duration `want:"not-negative" help:"How long the stream keeps what every sink has." default:"${replay_window}"`
	DeadLetterTTL   time.Duration `name:"dead-letter-ttl" want:"not-negative" help:"How long dead letters are kept; 0: for ever." default:"${dead_letter_ttl}"`
	SettleLinger    time.Duration `want:"not-negative" help:"How long a receipt waits for company before it is settled." default:"${settle_linger}"`
	RetransmitEvery time.Duration `want:"positive" help:"Pause between looks for batches that fell out of the queue." default:"${retransmit_every}"`
}

func (c *Janitor) config() pipeline.JanitorConfig {
	j := pipeline.DefaultJanitorConfig()
	j.Queue = c.QueueConfig()
	j.ReplayWindow, j.DeadLetterTTL = c.ReplayWindow, c.DeadLetterTTL
	j.SettleLinger, j.RetransmitEvery = c.SettleLinger, c.RetransmitEvery
	return j
}

// Check names the settings that cannot work, before anything is waited for.
func (c *Janitor) Check() error {
	return errors.Join(c.Lanes.validate(), c.config().Validate())
}

// Run runs a janitor until ctx ends.
func (c *Janitor) Run(ctx context.Context) error {
	if err := c.Check(); err != nil {
		return err
	}
	log := c.log(c.Logging, pipeline.KindJanitor)
	c.Memory.limit()
	return withAdmin(ctx, c.Identity, pipeline.KindJanitor, log, func(ctx context.Context, adm *admin) error {
		return c.run(ctx, adm, log)
	})
}

func (c *Janitor) run(ctx context.Context, adm *admin, log *slog.Logger) error {
	id := adm.id
	if err := adm.export(c); err != nil {
		return err
	}
	spans, stopTracing, err := startTracing(ctx, pipeline.KindJanitor, c.Identity, id, log)
	if err != nil {
		return err
	}
	defer stopTracing()
	database := c.Database.config()
	database.Meter = adm.meter("waybill/store")
	store, err := openStore(ctx, database, c.Lanes.Lanes, log)
	if err != nil {
		return err
	}
	defer store.Close()
	queue, nc, err := c.connect("waybill-janitor-"+id, log)
	if err != nil {
		return err
	}
	defer nc.Close()
	// What is missing the janitor creates; what exists and does not fit ends it.
	if err := queue.Check(ctx, c.Lanes.Lanes, 0); err != nil && !errors.Is(err, pipeline.ErrNotReady) {
		return err
	}
	cfg := c.config()
	cfg.Tracing = spans
	if c.Host != nil && c.Host.Janitor != nil {
		c.Host.Janitor(&cfg)
	}
	janitor, err := pipeline.NewJanitor(cfg, store, queue, log, adm.meter("waybill/janitor"))
	if err != nil {
		return err
	}
	adm.checks.Add("nats", queue.Connected)
	adm.checks.Add("work", janitor.Health)
	adm.checks.Degrade("time to live", janitor.NearTTL)
	adm.checks.Degrade("outbox", janitor.OutboxProblem)
	adm.checks.Watch(janitor.Buffers)
	beat := pipeline.NewHeartbeat(pipeline.KindJanitor, id, version())
	beat.Database = store.Database()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return janitor.Run(ctx) })
	group.Go(func() error {
		return pipeline.RunHeartbeat(ctx, queue, log, func() pipeline.Heartbeat {
			beat.Problem = adm.checks.Summary()
			return beat
		})
	})
	log.Info("janitor runs", "id", id, "lanes", store.Lanes(), "admin", adm.listener.Addr().String())
	adm.running(c.Identity, Running{})
	return group.Wait()
}
