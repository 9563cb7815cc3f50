package waybilltest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/errgroup"

	"github.com/waybillhq/waybill/internal/devstack"
	"github.com/waybillhq/waybill/internal/endpoint"
	"github.com/waybillhq/waybill/internal/producer"
	"github.com/waybillhq/waybill/pipeline"
	"github.com/waybillhq/waybill/sinks"
)

const (
	// startTimeout bounds Start, of Postgres too: on a busy machine a cluster takes many seconds.
	startTimeout = 3 * time.Minute
	// stopTimeout bounds what each process may take to stop.
	stopTimeout = 5 * time.Second
	// grace is the period after which what is no longer queued is retransmitted.
	grace = 3 * time.Second
	// dropTimeout bounds the removal of the database.
	dropTimeout = time.Minute
)

// Waybill is a running system, of one test. Its methods are safe for concurrent use.
type Waybill struct {
	// HTTPURL is where ingest takes events over HTTP: POST them to HTTPURL + "/v1/events".
	HTTPURL string
	// GRPCAddr is the host:port of ingest's gRPC service, chipingress.pb.ChipIngress, without TLS.
	GRPCAddr string
	// DatabaseURL and NATSURL are of the servers below it, for programs that are part of a pipeline themselves.
	DatabaseURL, NATSURL string
	// Lanes is the pipeline's number of lanes.
	Lanes int
	// Archive is where the archive is.
	Archive Archive

	settings settings
	started  bool // Start has told of no error
	began    time.Time
	endpoint *endpoint.Endpoint
	received *received
	parts    *parts
	sender   *producer.GRPC
	store    *pipeline.Store
	queue    *pipeline.Queue
	reader   *sinks.ArchiveReader
	closers  []func() error // of what was started, to be called backwards
}

// Archive names an S3 bucket and the keys of it that hold an archive.
type Archive struct {
	Endpoint, Region, AccessKey, SecretKey, Bucket, Prefix string
}

// Start starts a Waybill that takes events when it returns, and stops it when the test ends. The test fails if it
// cannot start.
func Start(t testing.TB, options ...Option) *Waybill {
	t.Helper()
	settings := defaultSettings()
	for _, option := range options {
		option(&settings)
	}
	if err := settings.validate(); err != nil {
		t.Fatalf("waybilltest: %v", err)
	}
	dir := t.TempDir() // before the Cleanup, which so comes before its removal
	output := &testOutput{w: t.Output()}
	if settings.log == nil {
		settings.log = output.logger()
	}
	w := &Waybill{Lanes: settings.lanes, settings: settings, began: time.Now(), received: newReceived(), parts: newParts()}
	t.Cleanup(func() {
		output.close() // who is told to stop may complain of it
		if err := w.stop(); err != nil {
			t.Errorf("waybilltest: stop: %v", err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	if err := w.start(ctx, dir); err != nil {
		t.Fatalf("waybilltest: start: %v", err)
	}
	w.started = true
	return w
}

func (w *Waybill) onStop(f func() error) { w.closers = append(w.closers, f) }

// start starts the servers, then the processes.
func (w *Waybill) start(ctx context.Context, dir string) error {
	var database, queue errgroup.Group
	var drop func(context.Context) error
	database.Go(func() (err error) {
		w.DatabaseURL, drop, err = newDatabase(ctx, w.Lanes)
		return err
	})
	var server *devstack.NATS
	queue.Go(func() (err error) {
		o := devstack.DefaultNATSOptions(dir)
		o.MaxStore = 4 * queueBytes // the streams reserve theirs
		server, err = devstack.StartNATS(o)
		return err
	})
	errDatabase, errQueue := database.Wait(), queue.Wait()
	if errDatabase == nil {
		w.onStop(func() error {
			ctx, cancel := context.WithTimeout(context.Background(), dropTimeout)
			defer cancel()
			return drop(ctx)
		})
	}
	if errQueue == nil {
		w.onStop(func() error { server.Stop(); return nil })
		w.NATSURL = server.URL()
	}
	if err := errors.Join(errDatabase, errQueue); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{w.startEndpoint, w.startArchive, w.openQueue, w.startProcesses} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (w *Waybill) startEndpoint(ctx context.Context) (err error) {
	c := endpoint.DefaultConfig()
	// The books of the endpoint itself are not read: received has all.
	c.MaxRecords, c.Behaviour, c.Taken, c.Log = 1, w.settings.behaviour.config(), w.received.take, w.settings.log
	if w.endpoint, err = endpoint.New(c); err != nil {
		return err
	}
	w.onStop(w.parts.run("endpoint", w.endpoint.Run))
	select {
	case <-w.endpoint.Ready():
		return nil
	case <-w.parts.failed:
		return w.parts.err()
	case <-ctx.Done():
		return fmt.Errorf("the endpoint does not listen: %w", ctx.Err())
	}
}

// openQueue makes streams and consumers, and keeps the connections for looking at what waits.
func (w *Waybill) openQueue(ctx context.Context) error {
	config := pipeline.DefaultStoreConfig(w.DatabaseURL)
	config.MaxConns = 2
	var err error
	if w.store, err = pipeline.OpenStore(ctx, config, w.Lanes); err != nil {
		return err
	}
	w.onStop(func() error { w.store.Close(); return nil })
	var nc *nats.Conn
	if nc, err = pipeline.ConnectNATS(w.NATSURL, "waybilltest"); err != nil {
		return err
	}
	w.onStop(func() error { nc.Close(); return nil })
	if w.queue, err = pipeline.NewQueue(nc); err != nil {
		return err
	}
	return pipeline.EnsureQueue(ctx, queueConfig(), w.store, w.queue, w.settings.log)
}

// stop ends everything, the last thing first. It tells of what had ended before, too.
func (w *Waybill) stop() error {
	var errs []error
	if w.started {
		errs = append(errs, w.parts.err())
	}
	for i := len(w.closers) - 1; i >= 0; i-- {
		errs = append(errs, w.closers[i]())
	}
	return errors.Join(errs...)
}
