// Package endpoint is a ChipIngress server that keeps books: what it received, in which
// order, how often. Development, demonstrations and tests deliver to it, and it can be
// told to misbehave.
package endpoint

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"github.com/waybillhq/waybill/schemas/chipingress"
)

const (
	// minPingInterval lets clients ping every 10 s with room for clocks that run fast.
	minPingInterval = 5 * time.Second
	// stopTimeout bounds how long calls under way may take once Run is to end.
	stopTimeout = 5 * time.Second
	// headerTimeout keeps a silent client from holding an admin connection.
	headerTimeout = 10 * time.Second
)

var errDown = status.Error(codes.Unavailable, "the endpoint is down by its behaviour")

// Config configures an Endpoint. Start from DefaultConfig.
type Config struct {
	// Addr and AdminAddr are the host:port of gRPC and of the admin HTTP server. With
	// port 0 a free one is taken.
	Addr, AdminAddr string
	// MaxRecords is how many of the newest events are kept to be read back. Doubles are
	// found among these only; other counts go on beyond. Two million take about 250 MB.
	MaxRecords int
	// RecordsPath is a file that every event taken is appended to before it is answered,
	// a Record in JSON a line, so that the books outlive the process (not the machine). A
	// process that is killed may leave its last line unfinished. Empty: none.
	RecordsPath string
	// MaxMessageBytes is the gRPC server's limit of a request.
	MaxMessageBytes int
	// MinPingInterval is the shortest interval of a client's keepalive pings; a client
	// that pings more often is disconnected.
	MinPingInterval time.Duration
	// Behaviour to start with.
	Behaviour Behaviour
	// Taken, which may be nil, is called with the events of a call that were taken, in the order in which they
	// came, before the call is answered: by several calls at once. It must neither change the events nor keep the
	// call up.
	Taken func(events []*pb.CloudEvent)
	// ServerOptions are added to the gRPC server's, for instance credentials.
	ServerOptions []grpc.ServerOption
	// Log is required.
	Log *slog.Logger
}

// DefaultConfig listens on free ports of the loopback interface.
func DefaultConfig() Config {
	return Config{
		Addr:            "127.0.0.1:0",
		AdminAddr:       "127.0.0.1:0",
		MaxRecords:      2_000_000,
		MaxMessageBytes: 16 << 20, // clients split just under 10 MiB
		MinPingInterval: minPingInterval,
		Behaviour:       DefaultBehaviour(),
		Log:             slog.Default(),
	}
}

// Validate reports every setting that cannot work, each with its remedy.
func (c Config) Validate() error {
	var errs []error
	for _, addr := range []struct{ name, value string }{{"Addr", c.Addr}, {"AdminAddr", c.AdminAddr}} {
		if _, _, err := net.SplitHostPort(addr.value); err != nil {
			errs = append(errs, fmt.Errorf("endpoint: %s %q: use host:port: %w", addr.name, addr.value, err))
		}
	}
	if c.MaxRecords < 1 {
		errs = append(errs, fmt.Errorf("endpoint: MaxRecords is %d; use a positive number, such as 2000000", c.MaxRecords))
	}
	if c.MaxMessageBytes < 1 || c.MaxMessageBytes > math.MaxInt32 {
		errs = append(errs, fmt.Errorf("endpoint: MaxMessageBytes is %d; use a positive number, such as 16777216", c.MaxMessageBytes))
	}
	if c.MinPingInterval <= 0 {
		errs = append(errs, fmt.Errorf("endpoint: MinPingInterval is %v; use a positive duration, such as 5s", c.MinPingInterval))
	}
	if _, err := c.Behaviour.compile(); err != nil {
		errs = append(errs, fmt.Errorf("endpoint: Behaviour: %w", err))
	}
	if c.Log == nil {
		errs = append(errs, errors.New("endpoint: Log is missing; give it a logger"))
	}
	return errors.Join(errs...)
}

// Endpoint is one receiving server. All methods are safe for concurrent use.
type Endpoint struct {
	cfg     Config
	service *service
	health  *health.Server

	started atomic.Bool
	ready   chan struct{} // closed when both addresses are listened on
	// Written before ready is closed.
	addr, adminAddr string
}

// New returns an Endpoint that does nothing until Run.
func New(cfg Config) (*Endpoint, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	e := &Endpoint{
		cfg:     cfg,
		service: &service{ledger: newLedger(cfg.MaxRecords), taken: cfg.Taken},
		health:  health.NewServer(),
		ready:   make(chan struct{}),
	}
	return e, e.SetBehaviour(cfg.Behaviour)
}

// Run serves until ctx ends, and may be called once. An address that cannot be
// listened on is an error; the end of ctx is not.
func (e *Endpoint) Run(ctx context.Context) error {
	if !e.started.CompareAndSwap(false, true) {
		return errors.New("endpoint: Run was called before; make a new Endpoint")
	}
	var listen net.ListenConfig
	grpcListener, err := listen.Listen(ctx, "tcp", e.cfg.Addr)
	if err != nil {
		return fmt.Errorf("endpoint: listen for gRPC: %w", err)
	}
	defer grpcListener.Close()
	adminListener, err := listen.Listen(ctx, "tcp", e.cfg.AdminAddr)
	if err != nil {
		return fmt.Errorf("endpoint: listen for admin: %w", err)
	}
	defer adminListener.Close()
	if err := e.service.ledger.open(e.cfg.RecordsPath); err != nil {
		return fmt.Errorf("endpoint: %w", err)
	}
	defer e.service.ledger.close()
	e.addr, e.adminAddr = grpcListener.Addr().String(), adminListener.Addr().String()
	close(e.ready)
	e.cfg.Log.InfoContext(ctx, "endpoint listens", "grpc", e.addr, "admin", e.adminAddr)

	server := e.newServer()
	admin := &http.Server{Handler: e.adminHandler(), ReadHeaderTimeout: headerTimeout}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := server.Serve(grpcListener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			return fmt.Errorf("endpoint: serve gRPC: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		if err := admin.Serve(adminListener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("endpoint: serve admin: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		stopServer(server)
		return admin.Close()
	})
	return group.Wait()
}

// stopServer lets calls under way end, for a while.
func stopServer(server *grpc.Server) {
	timer := time.AfterFunc(stopTimeout, server.Stop)
	defer timer.Stop()
	server.GracefulStop()
}

func (e *Endpoint) newServer() *grpc.Server {
	options := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(e.cfg.MaxMessageBytes),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
			MinTime: e.cfg.MinPingInterval, PermitWithoutStream: true,
		}),
		grpc.ChainUnaryInterceptor(e.refuseUnaryWhenDown),
		grpc.ChainStreamInterceptor(e.refuseStreamWhenDown),
	}
	server := grpc.NewServer(append(options, e.cfg.ServerOptions...)...)
	chipingress.RegisterChipIngressServer(server, e.service)
	healthpb.RegisterHealthServer(server, e.health)
	reflection.Register(server)
	return server
}

// down reports whether method is one of ChipIngress and the endpoint plays dead.
func (e *Endpoint) down(method string) bool {
	return e.service.rules.Load().Down && strings.HasPrefix(method, "/"+chipingress.ChipIngress_ServiceDesc.ServiceName+"/")
}

func (e *Endpoint) refuseUnaryWhenDown(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if e.down(info.FullMethod) {
		return nil, errDown
	}
	return next(ctx, req)
}

func (e *Endpoint) refuseStreamWhenDown(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if e.down(info.FullMethod) {
		return errDown
	}
	return next(server, stream)
}

// Ready is closed when both addresses can be connected to.
func (e *Endpoint) Ready() <-chan struct{} { return e.ready }

// Addr returns the host:port of the gRPC server, or nothing before Ready.
func (e *Endpoint) Addr() string {
	if !e.isReady() {
		return ""
	}
	return e.addr
}

// AdminAddr returns the host:port of the admin HTTP server, or nothing before Ready.
func (e *Endpoint) AdminAddr() string {
	if !e.isReady() {
		return ""
	}
	return e.adminAddr
}

func (e *Endpoint) isReady() bool {
	select {
	case <-e.ready:
		return true
	default:
		return false
	}
}

// SetBehaviour applies to the calls that come after it.
func (e *Endpoint) SetBehaviour(b Behaviour) error {
	compiled, err := b.compile()
	if err != nil {
		return fmt.Errorf("endpoint: behaviour: %w", err)
	}
	e.service.rules.Store(compiled)
	serving := healthpb.HealthCheckResponse_SERVING
	if b.Down {
		serving = healthpb.HealthCheckResponse_NOT_SERVING
	}
	e.health.SetServingStatus("", serving)
	e.health.SetServingStatus(chipingress.ChipIngress_ServiceDesc.ServiceName, serving)
	return nil
}

// Behaviour returns what is in force.
func (e *Endpoint) Behaviour() Behaviour { return e.service.rules.Load().Behaviour }

// Records returns a copy of the records kept, oldest first.
func (e *Endpoint) Records() []Record { return e.service.ledger.after(0, math.MaxInt) }

// Stats returns the counts, those of each key included.
func (e *Endpoint) Stats() Stats { return e.service.ledger.stats(true) }

// Reset forgets all records and counts. The behaviour stays.
func (e *Endpoint) Reset() { e.service.ledger.reset() }
