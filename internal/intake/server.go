package intake

import (
	"context"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/tap"

	"github.com/waybillhq/waybill/schemas/chipingress"
)

const (
	// messageSlack lets a message hold a request's limit of events and what frames them.
	messageSlack = 64 << 10
	// streamWindow is what a client may send of a call before the server reads it. Set, it
	// also keeps grpc from growing it to 16 MiB per call.
	streamWindow = 64 << 10
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
// grpc receives a whole message before a handler sees it, so the byte budget cannot be
// taken first as it is over HTTP. What bounds memory is this. A call that begins while the
// budget is used up is refused before anything of it is read. A call that goes on holds up
// to its window (64 KiB) unread, and while one message arrives up to that message
// (MaxRequestBytes and 64 KiB). Read, an event is encoded once and charged to the budget
// until its answer; a call that finds no room is refused then. So all calls together hold
// at most BudgetBytes for what waits for a commit, and at most connections × MaxStreams ×
// (MaxRequestBytes + 64 KiB) for messages that are on their way in or being decoded.
func (g *GRPC) ServerOptions() []grpc.ServerOption {
	config := g.intake.config
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(config.MaxRequestBytes + messageSlack),
		grpc.MaxConcurrentStreams(config.MaxStreams),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connectionWindow),
		grpc.MaxHeaderListSize(maxHeaderBytes),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
			MinTime: config.MinPing, PermitWithoutStream: true,
		}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: serverPing, Timeout: serverPingTimeout}),
		grpc.InTapHandle(g.tap),
	}
}

// tap refuses a call that brings events while the budget is used up. Pings, health checks
// and reflection hold next to nothing and are answered. It must not block: it runs in the
// goroutine that reads the connection.
func (g *GRPC) tap(ctx context.Context, info *tap.Info) (context.Context, error) {
	if bringsEvents(info.FullMethodName) && !g.intake.budget.hasRoom(streamWindow) {
		g.intake.metrics.refusedUnread(frontGRPC, "overloaded")
		return nil, g.intake.overBudget().status()
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
