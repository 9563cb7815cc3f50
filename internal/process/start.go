package process

import (
	"context"
	"errors"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/waybillhq/waybill/internal/pgconnect"
	"github.com/waybillhq/waybill/internal/tracing"
	"github.com/waybillhq/waybill/pipeline"
)

// startTimeout is how long a process waits at start for a Postgres that does not answer
// yet. What answers and does not fit ends it at once.
const startTimeout = time.Minute

// withAdmin runs a process beside its admin server, which answers until all else has ended.
func withAdmin(ctx context.Context, identity Identity, kind string, log *slog.Logger, run func(context.Context, *admin) error) error {
	adm, err := newAdmin(ctx, identity, kind, log)
	if err != nil {
		return err
	}
	defer adm.metrics.Stop()
	admCtx, stopAdmin := context.WithCancel(context.WithoutCancel(ctx))
	defer stopAdmin()
	var server errgroup.Group
	server.Go(func() error { return adm.run(admCtx) })
	err = run(ctx, adm)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil // it was asked to stop, and did
	}
	stopAdmin()
	err = errors.Join(err, server.Wait())
	if err != nil {
		log.Error("failed", "error", err)
	} else {
		log.Info("stopped")
	}
	return err
}

// startTracing returns what makes the process's spans, nil where the environment asks for none,
// and what ends it.
func startTracing(ctx context.Context, kind string, identity Identity, id string, log *slog.Logger) (*pipeline.Tracing, func(), error) {
	p, err := tracing.Start(ctx, tracing.FromEnv(identity.getenv), tracing.Process{Kind: kind, ID: id, Version: version()}, log)
	if err != nil {
		return nil, nil, err
	}
	return p.Pipeline(), p.Stop, nil
}

// openStore opens the store, waiting for a Postgres that is still starting.
func openStore(ctx context.Context, cfg pipeline.StoreConfig, lanes int, log *slog.Logger) (*pipeline.Store, error) {
	deadline := time.Now().Add(startTimeout)
	for logged := false; ; logged = true {
		store, err := pipeline.OpenStore(ctx, cfg, lanes)
		err = pgconnect.Explain(err, "--database-url (WAYBILL_DATABASE_URL)")
		if err == nil || !errors.Is(err, pipeline.ErrUnavailable) || ctx.Err() != nil || time.Now().After(deadline) {
			return store, err
		}
		if !logged {
			log.Warn("waiting for Postgres", "error", err)
		}
		sleep(ctx, time.Second)
	}
}

// connect returns a queue whose connection lives as long as the process; the server need
// not be there yet.
func (n NATS) connect(name string, log *slog.Logger) (*pipeline.Queue, *nats.Conn, error) {
	options := pipeline.ConnectionLog(log)
	if n.NATSCreds != "" {
		options = append(options, nats.UserCredentials(n.NATSCreds))
	}
	nc, err := pipeline.ConnectNATS(n.NATSURL, name, options...)
	if err != nil {
		return nil, nil, err
	}
	queue, err := pipeline.NewQueue(nc)
	if err != nil {
		nc.Close()
		return nil, nil, err
	}
	return queue, nc, nil
}

// version is the module's version as the build knows it.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "devel"
	}
	return info.Main.Version
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
