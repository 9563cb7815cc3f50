package intake

import (
	"context"
	"math"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/tap"

	"github.com/waybillhq/waybill/internal/governor"
	"github.com/waybillhq/waybill/schemas/chipingress"
)

const (
	// messageSlack lets a message hold a request's limit of events and what frames them.
	messageSlack = 64 << 10
	// connectionWindow bounds nothing in memory: grpc reopens it as data arrives. It only
	// must not slow a client on a long line.
	connectionWindow = 16 << 20
	// serverPing finds connections whose client vanished.
	serverPing        = time.Minute
	serverPingTimeout = 20 * time.Second
	maxHeaderBytes    = 64 << 10
)

// ServerOptions returns what a grpc.Server needs to keep this service's promises.
//
// grpc receives a whole message before a handler sees it. So that its bytes are taken from
// the budget before they come, package governor keeps the streams' windows: a call may send
// governor.Window (16 KiB; less where there are many connections) unasked, and a message
// that is larger waits for the budget. All first windows together take at most WindowBytes,
// and what goes beyond them is in the budget. A call that begins while there is no room for
// its window is refused before anything of it is read.
func (g *GRPC) ServerOptions() []grpc.ServerOption {
	config := g.intake.config
	return []grpc.ServerOption{
		grpc.Creds(g.governor.Credentials(insecure.NewCredentials())),
		grpc.ReadBufferSize(0), // the governor reads ahead
		grpc.ForceServerCodecV2(newCodec()),
		//lint:ignore SA1019 what replaces it is for all servers and clients of the process
		grpc.RPCDecompressor(noGzip{}),
		grpc.StreamInterceptor(g.govern),
		grpc.MaxRecvMsgSize(config.MaxRequestBytes + messageSlack),
		grpc.MaxConcurrentStreams(config.MaxStreams),
		grpc.StaticStreamWindowSize(int32(min(2*(int64(config.MaxRequestBytes)+messageSlack), math.MaxInt32))),
		grpc.StaticConnWindowSize(connectionWindow),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
			MinTime: config.MinPing, PermitWithoutStream: true,
		}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: serverPing, Timeout: serverPingTimeout}),
		grpc.InTapHandle(g.tap),
	}
}

// tap refuses a call that brings events while there is no room for its first window, or for
// what it brings in Postgres.
// Pings, health checks and reflection hold next to nothing and are answered. It must not
// block: it runs in the goroutine that reads the connection.
func (g *GRPC) tap(ctx context.Context, info *tap.Info) (context.Context, error) {
	events := bringsEvents(info.FullMethodName)
	if events && !g.intake.budget.hasRoom(governor.Window) {
		g.intake.metrics.refusedUnread(frontGRPC, "overloaded")
		return nil, g.intake.overBudget().status()
	}
	if refused, ok := g.intake.admit(); events && !ok {
		g.intake.metrics.refusedUnread(frontGRPC, refused.reason)
		return nil, refused.status()
	}
	ctx, ok := g.governor.Begin(ctx, !events)
	if !ok {
		g.intake.metrics.refusedUnread(frontGRPC, "overloaded")
		return nil, g.intake.overloaded("as many calls are open as may be").status()
	}
	return ctx, nil
}

func bringsEvents(method string) bool {
	return strings.HasPrefix(method, "/"+chipingress.ChipIngress_ServiceDesc.ServiceName+"/") &&
		method != chipingress.ChipIngress_Ping_FullMethodName
}

// RegisterHealth puts the health and reflection services on server. The returned health
// server says SERVING for the whole and for ChipIngress until its Shutdown.
func RegisterHealth(server *grpc.Server) *health.Server {
	h := health.NewServer()
	h.SetServingStatus(chipingress.ChipIngress_ServiceDesc.ServiceName, healthpb.HealthCheckResponse_SERVING)
	healthpb.RegisterHealthServer(server, h)
	reflection.Register(server)
	return h
}
