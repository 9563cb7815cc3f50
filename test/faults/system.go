package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/waybillhq/waybill/internal/devrun"
	"github.com/waybillhq/waybill/pipeline"
)

// system is everything that a run starts.
type system struct {
	seed  uint64 // of the run
	dir   string
	stack *devrun.Stack
	ways  *ways
	watch *watch
	// points says at which fail points processes die.
	points picker

	// Where producers reach the ingests, through proxies: URLs and host:port.
	http, grpc []string
	// emitter is a way in beside them, in this process, through proxies too.
	emitter *pipeline.Emitter
	// undo is what setups want done when everything has ended.
	undo []func() error
	disk disk // of Postgres, where it can be filled

	// The harness's own connections, past every proxy.
	nc    *nats.Conn
	queue *pipeline.Queue
	js    jetstream.JetStream

	stop func() error // ends everything; safe to call again
}

// scratchPrefix begins the names of the scratch directories.
const scratchPrefix = "waybill-faults-"

// recordsFile is where the endpoint writes what it took.
func (s *system) recordsFile() string { return filepath.Join(s.dir, "endpoint-records.ndjson") }

// startSystem starts the parts and waits until they are ready. Everything ends with stop,
// or with this process.
func startSystem(ctx context.Context, seed uint64, binary string, setups []setup) (*system, error) {
	dir, err := os.MkdirTemp("", scratchPrefix)
	if err != nil {
		return nil, fmt.Errorf("scratch directory: %w", err)
	}
	// Postgres runs as another user, who must be able to pass through.
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, errors.Join(fmt.Errorf("scratch directory: %w", err), os.RemoveAll(dir))
	}
	s := &system{seed: seed, dir: dir, ways: newWays(), watch: newWatch()}
	config := s.config(binary)
	for _, change := range setups {
		if err := change(&config, s); err != nil {
			return nil, errors.Join(err, s.remove())
		}
	}
	if s.stack, err = devrun.New(config); err != nil {
		return nil, errors.Join(err, s.remove())
	}
	background, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var running sync.WaitGroup
	running.Go(func() { s.ways.run(background) })
	if err := s.stack.Start(ctx); err != nil {
		cancel()
		running.Wait()
		return nil, errors.Join(err, s.remove())
	}
	supervising, stopSupervising := context.WithCancel(background)
	supervised := make(chan struct{})
	go func() { defer close(supervised); s.stack.Run(supervising) }()
	emitting, stopEmitting := context.WithCancel(background)
	emitted := make(chan error, 1)
	s.stop = sync.OnceValue(func() error {
		s.watch.ending()
		stopSupervising()
		<-supervised
		stopEmitting()
		var err error
		if s.emitter != nil {
			err = <-emitted
		}
		err = errors.Join(err, s.stack.Stop()) // while the ways are open
		cancel()
		running.Wait()
		if s.nc != nil {
			s.nc.Close()
		}
		return err
	})
	if err := s.connect(ctx); err != nil {
		return nil, errors.Join(err, s.stop(), s.remove())
	}
	go func() { emitted <- s.emitter.Run(emitting) }()
	if err := s.emitter.WaitReady(ctx); err != nil {
		return nil, errors.Join(err, s.stop(), s.remove())
	}
	running.Go(func() { s.watch.run(background, s) })
	return s, nil
}

// config is what the system consists of.
func (s *system) config(binary string) devrun.Config {
	c := devrun.DefaultConfig()
	c.Dir, c.Executable, c.FreePorts = s.dir, binary, true
	c.Ingests, c.Forwarders, c.Janitors = len(ingests), len(forwarders), len(janitors)
	c.ArchiveLinger = 200 * time.Millisecond
	c.Env = append(os.Environ(), "WAYBILL_ENDPOINT_RECORDS_FILE="+s.recordsFile(), "WAYBILL_FAILPOINTS="+s.ordersDir())
	c.Say, c.Via = s.watch.hear, s.ways.via
	return c
}

func (s *system) connect(ctx context.Context) error {
	err := s.addFronts()
	if err != nil {
		return err
	}
	if s.nc, err = pipeline.ConnectNATS(s.stack.NATSURL, "faults"); err != nil {
		return err
	}
	if s.queue, err = pipeline.NewQueue(s.nc); err != nil {
		return err
	}
	if s.js, err = jetstream.New(s.nc); err != nil {
		return fmt.Errorf("JetStream: %w", err)
	}
	if err := s.exec(ctx, retransmitsSQL); err != nil {
		return err
	}
	return s.addEmitter()
}

// addEmitter makes the emitter, with ways of its own to the servers.
func (s *system) addEmitter() error {
	database, err := s.wayOf("postgres", s.stack.DatabaseURL)
	if err != nil {
		return err
	}
	// Of a cluster it knows one server: the others are named by it, as every server names them.
	first, _, _ := strings.Cut(s.stack.NATSURL, ",")
	nats, err := s.wayOf("nats", first)
	if err != nil {
		return err
	}
	s.emitter, err = pipeline.NewEmitter(pipeline.DefaultEmitterConfig(database, nats))
	return err
}

// wayOf is the URL of a server by the emitter's way to it.
func (s *system) wayOf(server, address string) (string, error) {
	u, err := url.Parse(address)
	if err != nil {
		return "", fmt.Errorf("way to %s: %w", server, err)
	}
	u.Host, err = s.ways.via(emitters[0], server, u.Host)
	return u.String(), err
}

// remove deletes what the system stored. Call it after stop.
func (s *system) remove() error {
	var errs []error
	for _, undo := range slices.Backward(s.undo) {
		errs = append(errs, undo())
	}
	if s.stack != nil {
		errs = append(errs, s.stack.Remove())
	}
	return errors.Join(append(errs, os.RemoveAll(s.dir))...)
}

// setup changes what a system consists of, before any of it is started.
type setup func(c *devrun.Config, s *system) error

// addFronts puts proxies between the producers and the ingests.
func (s *system) addFronts() error {
	for i, url := range s.stack.HTTP {
		ingest := ingests[i]
		http, err := s.ways.via(ingest, "http", strings.TrimPrefix(url, "http://"))
		if err != nil {
			return err
		}
		grpc, err := s.ways.via(ingest, "grpc", s.stack.GRPC[i])
		if err != nil {
			return err
		}
		s.http, s.grpc = append(s.http, "http://"+http), append(s.grpc, grpc)
	}
	return nil
}

// retransmitsSQL makes Postgres itself keep the books on retransmits: exactly, whoever is
// killed meanwhile.
const retransmitsSQL = `
	CREATE TABLE public.retransmits (
		batch bigint NOT NULL, token bigint NOT NULL, attempt integer NOT NULL, events integer NOT NULL,
		waiting_for text[] NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp());
	CREATE FUNCTION public.note_retransmit() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.retransmits VALUES (NEW.batch, NEW.token, NEW.attempts, NEW.events, NEW.waiting_for);
		RETURN NULL;
	END $$;
	CREATE TRIGGER note_retransmit AFTER UPDATE ON waybill.batches
		FOR EACH ROW WHEN (OLD.attempts IS DISTINCT FROM NEW.attempts) EXECUTE FUNCTION public.note_retransmit();`

// pid is the process id of a part, or 0 while it is down.
func (s *system) pid(name string) int {
	for _, p := range s.stack.Parts() {
		if p.Name == name {
			return p.PID
		}
	}
	return 0
}

func (s *system) signal(name string, signal syscall.Signal) error {
	pid := s.pid(name)
	if pid == 0 { // which would mean this process and its group
		return fmt.Errorf("signal %s: it does not run", name)
	}
	if err := syscall.Kill(pid, signal); err != nil {
		return fmt.Errorf("signal %s: %w", name, err)
	}
	return nil
}

// startLimit bounds how long a part may take to end and to be started again: above what
// a process may take to stop.
const startLimit = time.Minute

// awaitStart waits until the part that was told to end was started again.
func (s *system) awaitStart(ctx context.Context, name string) error {
	return poll(ctx, startLimit, name+" is started again", func(context.Context) error {
		return s.watch.awaited(name)
	})
}

// awaitReady waits until a process says that it is ready.
func (s *system) awaitReady(ctx context.Context, name string) error {
	return s.awaitAnswer(ctx, name, "/readyz")
}

// awaitAnswer waits until a process's admin address answers well.
func (s *system) awaitAnswer(ctx context.Context, name, path string) error {
	addr := ""
	for _, p := range s.stack.Parts() {
		if p.Name == name {
			addr = p.Where[strings.LastIndex(p.Where, " ")+1:]
		}
	}
	return poll(ctx, startLimit, name+" answers "+path, func(ctx context.Context) error {
		return request(ctx, http.MethodGet, "http://"+addr+path, "")
	})
}

// behave tells the endpoint what to do.
func (s *system) behave(ctx context.Context, behaviour string) error {
	return poll(ctx, startLimit, "the endpoint does as told", func(ctx context.Context) error {
		return request(ctx, http.MethodPut, s.stack.EndpointAdmin+"/behaviour", behaviour)
	})
}

// exec runs a statement on a connection of its own, as often as it takes.
func (s *system) exec(ctx context.Context, sql string) error {
	return s.untilPostgres(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, sql)
		return err
	})
}

func (s *system) untilPostgres(ctx context.Context, do func(context.Context, *pgx.Conn) error) error {
	return poll(ctx, startLimit, "Postgres does as told", func(ctx context.Context) error {
		conn, err := pgx.Connect(ctx, s.stack.DatabaseURL)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close(ctx) }() // what it did is done
		return do(ctx, conn)
	})
}

func (s *system) untilNATS(ctx context.Context, do func(context.Context) error) error {
	return poll(ctx, startLimit, "NATS does as told", do)
}

// askTimeout bounds one try of what is tried again.
const askTimeout = 5 * time.Second

// poll tries until it works.
func poll(ctx context.Context, limit time.Duration, what string, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		once, cancelOnce := context.WithTimeout(ctx, askTimeout)
		err := try(once)
		cancelOnce()
		if err == nil {
			return nil
		}
		sleep(ctx, 50*time.Millisecond)
		if ctx.Err() != nil {
			return fmt.Errorf("not within %v: %s: %w", limit, what, err)
		}
	}
}

func request(ctx context.Context, method, url, body string) error {
	r, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }() // it was read
	text, err := io.ReadAll(io.LimitReader(response.Body, 4096))
	if err != nil {
		return err
	}
	if response.StatusCode >= 300 {
		return fmt.Errorf("%s: %s", response.Status, strings.TrimSpace(string(text)))
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
