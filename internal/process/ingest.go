package process

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"

	"github.com/waybillhq/waybill/internal/intake"
	"github.com/waybillhq/waybill/pipeline"
)

// Ingest takes CloudEvents over HTTP and gRPC, commits them to Postgres before it answers,
// and publishes them to JetStream.
type Ingest struct {
	Logging
	Identity
	Memory
	Database
	NATS
	Lanes

	HTTPAddr string `name:"http-addr" env:"WAYBILL_HTTP_ADDR" want:"address" help:"Address of POST /v1/events." default:":8080"`
	GRPCAddr string `name:"grpc-addr" env:"WAYBILL_GRPC_ADDR" want:"address" help:"Address of the gRPC service chipingress.pb.ChipIngress." default:":50051"`

	MaxEventBytes    int           `help:"Largest event, encoded." default:"${max_event_bytes}"`
	MaxRequestBytes  int           `help:"Largest HTTP body and gRPC message." default:"${max_request_bytes}"`
	MaxRequestEvents int           `help:"Most events of one request." default:"${max_request_events}"`
	BudgetBytes      int64         `help:"Bytes that all requests together may hold; beyond it producers are told to slow down." default:"${budget_bytes}"`
	EventTTL         time.Duration `name:"event-ttl" env:"WAYBILL_EVENT_TTL" want:"not-negative" help:"How long an event may wait for its sinks before it becomes a dead letter; 0: for ever." default:"${event_ttl}"`
	FlushEvents      int           `want:"positive" help:"Most events of one transaction." default:"${flush_events}"`
	QueueEvents      int           `want:"positive" help:"Events that may wait for a transaction; beyond it producers are told to slow down." default:"${queue_events}"`
	DedupeAttribute  string        `help:"Extension attribute, such as idempotencykey, that says which events are the same one; of an event without it the id does. The same for all ingests."`
	DedupeBytes      int           `help:"Memory in which accepted events are remembered for the pipeline's dedupe window, 15 to 19 bytes each." default:"${dedupe_bytes}"`
	BacklogEvents    int64         `want:"not-negative" help:"Events that may wait in Postgres for their sinks; from there on producers are told to come back later; 0: any number." default:"${backlog_events}"`
	BacklogBytes     int64         `want:"not-negative" help:"The same in bytes." default:"${backlog_bytes}"`
	Outbox           bool          `help:"Take events out of the outbox, into which transactions of other programs emit (docs/outbox.md)." default:"true" negatable:""`
	StopTimeout      time.Duration `want:"positive" help:"How long a stop may take." default:"${stop_timeout}"`
}

func (c *Ingest) ingester() pipeline.IngesterConfig {
	in := pipeline.DefaultIngesterConfig()
	in.EventTTL, in.FlushEvents, in.QueueEvents, in.StopTimeout = c.EventTTL, c.FlushEvents, c.QueueEvents, c.StopTimeout
	in.DedupeBytes = c.DedupeBytes
	in.BacklogEvents, in.BacklogBytes = c.BacklogEvents, c.BacklogBytes
	in.Outbox = pipeline.OutboxConfig{Take: c.Outbox, MaxEventBytes: c.MaxEventBytes, IdentifyBy: c.DedupeAttribute}
	// max_payload is checked against the event limit: a batch of that size fits too.
	in.BatchBytes = min(in.BatchBytes, max(c.MaxEventBytes, 64<<10))
	return in
}

func (c *Ingest) front() intake.Config {
	f := intake.DefaultConfig()
	f.MaxEventBytes, f.MaxRequestBytes, f.MaxRequestEvents = c.MaxEventBytes, c.MaxRequestBytes, c.MaxRequestEvents
	f.BudgetBytes = c.BudgetBytes
	f.DedupeAttribute = c.DedupeAttribute
	return f
}

// Check names the settings that cannot work, before anything is waited for.
func (c *Ingest) Check() error {
	return errors.Join(c.Lanes.validate(), c.ingester().Validate(), c.front().Validate(),
		checkAddr("http addr", c.HTTPAddr), checkAddr("grpc addr", c.GRPCAddr))
}

// Run runs an ingest until ctx ends, and then as long as it takes to answer what came in.
func (c *Ingest) Run(ctx context.Context) error {
	if err := c.Check(); err != nil {
		return err
	}
	log := c.log(c.Logging, pipeline.KindIngest)
	c.Memory.limit()
	return withAdmin(ctx, c.Identity, pipeline.KindIngest, log, func(ctx context.Context, adm *admin) error {
		return c.run(ctx, adm, log)
	})
}

func (c *Ingest) run(ctx context.Context, adm *admin, log *slog.Logger) error {
	id := adm.id
	if err := adm.export(c); err != nil {
		return err
	}
	spans, stopTracing, err := startTracing(ctx, pipeline.KindIngest, c.Identity, id, log)
	if err != nil {
		return err
	}
	defer stopTracing()
	config := c.Database.config()
	config.KeepPlans, config.Meter = true, adm.meter("waybill/store")
	store, err := openStore(ctx, config, c.Lanes.Lanes, log)
	if err != nil {
		return err
	}
	defer store.Close()
	queue, nc, err := c.connect("waybill-ingest-"+id, log)
	if err != nil {
		return err
	}
	defer nc.Close()
	engineConfig := c.ingester()
	engineConfig.Tracing = spans
	ingester, err := pipeline.NewIngester(engineConfig, store, queue, log, adm.meter("waybill/ingest"))
	if err != nil {
		return err
	}
	servers, err := c.listen(ingester, adm, spans)
	if err != nil {
		return err
	}
	adm.checks.Add("commit", ingester.Health)
	adm.checks.Degrade("backlog", ingester.BacklogFull)
	adm.checks.Degrade("outbox", ingester.OutboxProblem)
	adm.checks.Degrade("nats", queue.Connected)
	adm.checks.Watch(ingester.Buffers)
	adm.checks.Watch(servers.front.Buffers)
	watch := pipeline.NewQueueWatch(store, queue, c.MaxEventBytes)
	adm.checks.Degrade("queue", watch.QueueProblem)
	adm.checks.Degrade("janitor", watch.JanitorProblem)
	beat := pipeline.NewHeartbeat(pipeline.KindIngest, id, version())
	beat.Database = store.Database()
	log.Info("ingest runs", "id", id, "lanes", store.Lanes(), "http", servers.http.Addr().String(),
		"grpc", servers.grpc.Addr().String(), "admin", adm.listener.Addr().String())
	adm.running(c.Identity, Running{HTTPAddr: servers.http.Addr().String(), GRPCAddr: servers.grpc.Addr().String()})

	// The ingester outlives the servers: what they took must be answered.
	inner, stopInner := context.WithCancel(context.WithoutCancel(ctx))
	defer stopInner()
	var engine errgroup.Group
	engine.Go(func() error { return ingester.Run(inner) })
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return servers.run(ctx, c.StopTimeout) })
	group.Go(func() error { return watch.Run(ctx) })
	group.Go(func() error {
		return pipeline.RunHeartbeat(ctx, queue, log, func() pipeline.Heartbeat {
			beat.Problem = adm.checks.Summary()
			return beat
		})
	})
	err = group.Wait()
	stopInner()
	return errors.Join(err, engine.Wait())
}

// ingestServers are the two ways in.
type ingestServers struct {
	http, grpc net.Listener
	httpServer *http.Server
	grpcServer *grpc.Server
	front      *intake.GRPC
	health     *health.Server
}

func (c *Ingest) listen(ingester *pipeline.Ingester, adm *admin, spans *pipeline.Tracing) (*ingestServers, error) {
	front := c.front()
	front.Meter, front.Tracing = adm.meter("waybill/intake"), spans
	in, err := intake.New(front, ingester)
	if err != nil {
		return nil, err
	}
	s := &ingestServers{front: intake.NewGRPC(in)}
	if s.http, err = net.Listen("tcp", c.HTTPAddr); err != nil {
		return nil, fmt.Errorf("http addr: %w; give each ingest on a machine its own (WAYBILL_HTTP_ADDR)", err)
	}
	if s.grpc, err = net.Listen("tcp", c.GRPCAddr); err != nil {
		return nil, errors.Join(fmt.Errorf("grpc addr: %w; give each ingest on a machine its own (WAYBILL_GRPC_ADDR)", err), s.http.Close())
	}
	// Headers may take as long as a body: a producer that shares its machine with thousands of others
	// is cut off without an answer when they are late.
	s.httpServer = &http.Server{Handler: intake.NewHTTP(in), ReadHeaderTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute}
	s.grpcServer = grpc.NewServer(s.front.ServerOptions()...)
	s.front.Register(s.grpcServer)
	s.health = intake.RegisterHealth(s.grpcServer)
	return s, nil
}

// run serves until ctx ends, and then until what was taken has been answered, or timeout.
func (s *ingestServers) run(ctx context.Context, timeout time.Duration) error {
	failed := make(chan error, 2)
	go func() { failed <- s.httpServer.Serve(s.http) }()
	go func() { failed <- s.grpcServer.Serve(s.grpc) }()
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
		err = fmt.Errorf("serve: %w", err)
	}
	s.stop(timeout)
	return err
}

func (s *ingestServers) stop(timeout time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	s.health.Shutdown()
	var wg sync.WaitGroup
	wg.Go(func() {
		if s.httpServer.Shutdown(ctx) != nil {
			_ = s.httpServer.Close() // connections whose clients do not finish
		}
	})
	wg.Go(func() {
		s.front.Drain()
		graceful := make(chan struct{})
		go func() { s.grpcServer.GracefulStop(); close(graceful) }()
		select {
		case <-graceful:
		case <-ctx.Done():
			s.grpcServer.Stop()
			<-graceful
		}
	})
	wg.Wait()
	s.front.Wait()
}
