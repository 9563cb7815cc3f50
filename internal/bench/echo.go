package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/waybillhq/waybill/internal/devstack"
	"github.com/waybillhq/waybill/schemas/chipingress"
)

// RunEcho serves, until ctx ends, what an ingest is compared with: a gRPC service that
// answers as ingest does and stores nothing, and an HTTP handler that reads the body.
func RunEcho(ctx context.Context, grpcAddr, httpAddr string) error {
	grpcListener, err := net.Listen("tcp", grpcAddr)
	if err != nil {
		return fmt.Errorf("listen for gRPC: %w", err)
	}
	httpListener, err := net.Listen("tcp", httpAddr)
	if err != nil {
		return errors.Join(fmt.Errorf("listen for HTTP: %w", err), grpcListener.Close())
	}
	server := grpc.NewServer(grpc.MaxRecvMsgSize(receiverMaxBytes))
	chipingress.RegisterChipIngressServer(server, echo{})
	web := &http.Server{Handler: http.HandlerFunc(readBody), ReadHeaderTimeout: 10 * time.Second}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return server.Serve(grpcListener) })
	group.Go(func() error {
		if err := web.Serve(httpListener); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		server.Stop()
		return web.Close()
	})
	return group.Wait()
}

func readBody(w http.ResponseWriter, r *http.Request) {
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
}

// echo answers every event with its id.
type echo struct {
	chipingress.UnimplementedChipIngressServer
}

// Publish implements chipingress.ChipIngressServer.
func (echo) Publish(_ context.Context, event *pb.CloudEvent) (*chipingress.PublishResponse, error) {
	return &chipingress.PublishResponse{Results: []*chipingress.PublishResult{{EventId: event.GetId()}}}, nil
}

// PublishBatch implements chipingress.ChipIngressServer.
func (echo) PublishBatch(_ context.Context, batch *chipingress.CloudEventBatch) (*chipingress.PublishResponse, error) {
	results := make([]*chipingress.PublishResult, len(batch.GetEvents()))
	for i, event := range batch.GetEvents() {
		results[i] = &chipingress.PublishResult{EventId: event.GetId()}
	}
	return &chipingress.PublishResponse{Results: results}, nil
}

// StreamEvents implements chipingress.ChipIngressServer.
func (echo) StreamEvents(stream grpc.BidiStreamingServer[chipingress.StreamEventsRequest, chipingress.StreamEventsResponse]) error {
	for {
		request, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(&chipingress.StreamEventsResponse{EventId: request.GetEvent().GetId(), Status: statusOfTaken}); err != nil {
			return err
		}
	}
}

// echoProcess is RunEcho as a process of its own, as ingest is one.
type echoProcess struct {
	process           *devstack.Process
	httpURL, grpcAddr string
}

func startEcho(ctx context.Context, s *System) (*echoProcess, error) {
	var addrs [2]string
	for i := range addrs {
		port, err := devstack.FreePort()
		if err != nil {
			return nil, err
		}
		addrs[i] = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	}
	command := devstack.DefaultCommand("echo", s.bench.config.Executable, "bench-echo", "--grpc-addr", addrs[0], "--http-addr", addrs[1])
	command.Env, command.LogPath = s.bench.config.Env, filepath.Join(s.dir, "logs", "echo.log")
	command.Ready, command.ReadyTimeout = devstack.TCPReady(addrs[1]), 10*time.Second
	process, err := devstack.StartProcess(ctx, command)
	if err != nil {
		return nil, err
	}
	return &echoProcess{process, "http://" + addrs[1], addrs[0]}, nil
}

// rate is how many events/s the echo answers of a closed-loop load.
func (e *echoProcess) rate(ctx context.Context, load Load) (float64, error) {
	l := newLedger(time.Now())
	g, err := newGenerator(load, l, addresses{http: e.httpURL, grpc: e.grpcAddr})
	if err != nil {
		return 0, err
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() { defer close(stopped); g.run(ctx, stop) }()
	pause(ctx, load.WarmUp)
	before, began := l.accepted.Load(), time.Now()
	pause(ctx, load.For)
	rate := float64(l.accepted.Load()-before) / time.Since(began).Seconds()
	close(stop)
	<-stopped
	if err := errors.Join(ctx.Err(), g.sender.close()); err != nil {
		return 0, err
	}
	if l.failed.Load() > 0 {
		return 0, fmt.Errorf("echo: %d events were not answered: %v", l.failed.Load(), g.errs)
	}
	return rate, nil
}
