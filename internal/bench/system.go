package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"

	"github.com/waybillhq/waybill/internal/devrun"
	"github.com/waybillhq/waybill/pipeline"
)

// System is what is measured: a stack of its own, or an existing one.
type System struct {
	// Name of the system, for reports.
	Name string

	bench    *Bench
	ledger   *ledger
	receiver *receiver // nil: nobody delivers to us
	stack    *devrun.Stack
	dir      string
	stopRun  func()

	httpURL, grpcAddr    string
	databaseURL, natsURL string
	nats                 *nats.Conn
	prober               *prober
}

// changeStack alters what a system of its own consists of.
type changeStack func(*devrun.Config)

// Start starts a system for a scenario, or connects to the existing one. change, which may
// be nil, alters what it consists of, and is not for existing ones.
func (b *Bench) Start(ctx context.Context, name string, change changeStack) (s *System, err error) {
	s = &System{Name: name, bench: b, ledger: newLedger(time.Now())}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("system %s: %w", name, err), s.stop())
		}
	}()
	if b.config.Given != nil {
		if change != nil {
			return nil, fmt.Errorf("scenario %s needs a system of its own: leave the addresses out", b.scenario.Name)
		}
		return s, s.connectGiven(ctx, *b.config.Given)
	}
	b.live("starting a system")
	if s.receiver, err = startReceiver("127.0.0.1:0", s.ledger); err != nil {
		return nil, err
	}
	if err := s.startStack(ctx, change); err != nil {
		return nil, err
	}
	s.httpURL, s.grpcAddr = s.stack.HTTP[0], s.stack.GRPC[0]
	s.databaseURL, s.natsURL = s.stack.DatabaseURL, s.stack.NATSURL
	return s, s.connect(ctx)
}

func (s *System) startStack(ctx context.Context, change changeStack) (err error) {
	if s.dir, err = os.MkdirTemp("", "waybill-bench-"); err != nil {
		return fmt.Errorf("scratch directory: %w", err)
	}
	// Postgres may run as another user, who must be able to pass through.
	if err := os.Chmod(s.dir, 0o755); err != nil {
		return fmt.Errorf("scratch directory: %w", err)
	}
	c := devrun.DefaultConfig()
	c.Dir, c.Executable, c.FreePorts = s.dir, s.bench.config.Executable, true
	c.Env, c.Say = s.bench.config.Env, s.bench.config.Say
	c.IngressEndpoint = s.receiver.addr
	if change != nil {
		change(&c)
	}
	stack, err := devrun.New(c)
	if err != nil {
		return err
	}
	if err := stack.Start(ctx); err != nil {
		return errors.Join(err, stack.Remove())
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() { stack.Run(running) })
	s.stack, s.stopRun = stack, func() { stop(); wg.Wait() }
	return nil
}

func (s *System) connectGiven(ctx context.Context, g Given) (err error) {
	if g.EndpointAddr != "" {
		if s.receiver, err = startReceiver(g.EndpointAddr, s.ledger); err != nil {
			return err
		}
	} else {
		s.bench.missing("what the endpoint takes, its latency and its correctness: --endpoint-addr is not given")
	}
	s.httpURL, s.grpcAddr, s.databaseURL, s.natsURL = g.HTTPURL, g.GRPCAddr, g.DatabaseURL, g.NATSURL
	s.bench.missing("CPU time and memory of the processes, and what the archive takes: the system was not started here")
	if g.DatabaseURL == "" {
		s.bench.missing("what waits in Postgres, WAL, and lost events beyond the endpoint's: --database-url is not given")
	}
	if g.NATSURL == "" {
		s.bench.missing("the depth of the queue: --nats-url is not given")
	}
	return s.connect(ctx)
}

// connect opens the probes' connections and lets them begin.
func (s *System) connect(ctx context.Context) (err error) {
	if s.natsURL != "" {
		if s.nats, err = pipeline.ConnectNATS(s.natsURL, "waybill-bench"); err != nil {
			return err
		}
	}
	s.prober, err = startProber(ctx, s)
	return err
}

// Close checks what became of everything that was sent, and stops the system.
func (s *System) Close(ctx context.Context) error {
	s.bench.live("checking what was delivered")
	verdicts, err := s.verdicts(ctx)
	s.bench.report.Correctness = append(s.bench.report.Correctness, verdicts...)
	for _, v := range verdicts {
		s.bench.config.Say("correctness: " + v.String())
	}
	if err == nil {
		err = s.noteVersions(ctx)
	}
	return errors.Join(err, s.stop())
}

// stop ends everything that was started. It may be called again.
func (s *System) stop() error {
	var errs []error
	if s.prober != nil {
		errs = append(errs, s.prober.close())
		s.prober = nil
	}
	if s.nats != nil {
		s.nats.Close()
		s.nats = nil
	}
	if s.stack != nil {
		s.stopRun()
		errs = append(errs, s.stack.Stop(), s.keepLogs(), s.stack.Remove())
		s.stack = nil
	}
	if s.receiver != nil {
		errs = append(errs, s.receiver.close())
		s.receiver = nil
	}
	if s.dir != "" {
		errs = append(errs, os.RemoveAll(s.dir))
		s.dir = ""
	}
	return errors.Join(errs...)
}

func (s *System) keepLogs() error {
	if !s.bench.config.KeepLogs {
		return nil
	}
	to := filepath.Join(s.bench.config.Dir, "logs", s.Name)
	if err := os.RemoveAll(to); err != nil {
		return fmt.Errorf("keep the logs: %w", err)
	}
	if err := os.CopyFS(to, os.DirFS(filepath.Join(s.dir, "logs"))); err != nil {
		return fmt.Errorf("keep the logs: %w", err)
	}
	return nil
}

// postgres opens a connection; the caller closes it.
func (s *System) postgres(ctx context.Context) (*pgx.Conn, error) {
	return connectTo(ctx, s.databaseURL)
}
