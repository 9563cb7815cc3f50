package devrun

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/waybillhq/waybill/internal/devstack"
	"github.com/waybillhq/waybill/internal/process"
	"github.com/waybillhq/waybill/internal/supervisor"
	"github.com/waybillhq/waybill/pipeline"
)

// readyTimeout bounds the wait for Waybill's processes to be ready; on a loaded machine
// the first lanes take some seconds.
const readyTimeout = time.Minute

// natsTimeout bounds the wait for an answer of a NATS server that is ready.
const natsTimeout = 20 * time.Second

// member is one part of a stack.
type member struct {
	*supervisor.Supervisor
	where string // its addresses, for people
}

// Stack is a running system. The exported fields are set by Start and do not change.
type Stack struct {
	config Config
	ports  *ports
	ownS3  bool
	// postgres is nil where there is an existing server.
	postgres *postgresPart
	admins   map[string]string // process → host:port

	traces   *traces   // nil: the stack keeps none
	counters *counters // for who calls Counters, one at a time

	// In the order of starting; stopping goes from the last to the first, except that
	// ingests go first: nothing new comes in, and what is in is still worked on.
	servers, ingests, forwarders, janitors []member

	DatabaseURL     string
	NATSURL         string
	S3              process.S3
	IngressEndpoint string   // host:port
	EndpointAdmin   string   // URL; empty: unknown
	HTTP            []string // URLs of the ingests
	GRPC            []string // host:port of the ingests
	TraceQueryURL   string   // of a server with the traces that the stack keeps; empty: it keeps none
}

// New returns a stack that is not started. The caller holds the lock of config.Dir.
func New(config Config) (*Stack, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(config.Dir)
	if err != nil {
		return nil, fmt.Errorf("directory %s: %w", config.Dir, err)
	}
	config.Dir = dir
	known, err := loadPorts(filepath.Join(dir, "ports.json"))
	if err != nil {
		return nil, err
	}
	return &Stack{config: config, ports: known, admins: map[string]string{}, counters: newCounters()}, nil
}

func (s *Stack) add(group *[]member, name, where string, part supervisor.Part) {
	*group = append(*group, member{supervisor.New(name, part, s.config.RestartPause, s.config.Say), where})
}

// Start starts everything and waits until events can be sent. After an error whatever was
// started is stopped again.
func (s *Stack) Start(ctx context.Context) error {
	err := s.start(ctx)
	if err != nil {
		err = errors.Join(err, s.Stop())
	}
	return err
}

func (s *Stack) start(ctx context.Context) error {
	// Before anything slow: an address that is taken is said at once.
	if err := s.checkAddrs(); err != nil {
		return err
	}
	for _, add := range []func() error{s.keepTraces, s.addPostgres, s.addNATS, s.addS3, s.addEndpoint} {
		if err := add(); err != nil {
			return err
		}
	}
	if err := startAll(ctx, s.servers); err != nil {
		return err
	}
	if s.postgres != nil {
		s.DatabaseURL = s.postgres.server.URL("")
	}
	if err := s.migrate(ctx); err != nil {
		return err
	}
	// Not before: their environment names the servers.
	if err := s.addProcesses(); err != nil {
		return err
	}
	if err := errors.Join(s.writeEnvironment(), s.writeAdmin(), s.ports.save()); err != nil {
		return err
	}
	if err := startAll(ctx, slices.Concat(s.janitors, s.ingests, s.forwarders)); err != nil {
		return err
	}
	return s.waitReady(ctx)
}

func startAll(ctx context.Context, members []member) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, m := range members {
		group.Go(func() error { return m.Start(ctx) })
	}
	return group.Wait()
}

// migrate creates tables, streams and consumers.
func (s *Stack) migrate(ctx context.Context) error {
	spec := pipeline.DefaultSpec()
	spec.Lanes, spec.Grace, spec.DedupeWindow = s.config.Lanes, s.config.Grace, s.config.DedupeWindow
	if s.config.WithoutArchive {
		spec.Sinks = []string{"ingress"}
	}
	if err := pipeline.Migrate(ctx, s.DatabaseURL, spec); err != nil {
		return err
	}
	nc, err := pipeline.ConnectNATS(s.NATSURL, "waybill-dev")
	if err != nil {
		return err
	}
	defer nc.Close()
	queue, err := pipeline.NewQueue(nc)
	if err != nil {
		return err
	}
	if err := nc.FlushTimeout(natsTimeout); err != nil {
		if s.config.NATSURL != "" { // which may hold a password
			return fmt.Errorf("the server of --nats-url does not answer within %v (%w): correct the address, or start it", natsTimeout, err)
		}
		return fmt.Errorf("connect to NATS: %w", err)
	}
	store, err := s.OpenStore(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	for deadline := time.Now().Add(natsTimeout); ; pause(ctx, 500*time.Millisecond) {
		err := pipeline.EnsureQueue(ctx, s.config.Queue, store, queue, slog.New(slog.DiscardHandler))
		// A cluster takes some seconds to agree on its leaders.
		if err == nil || s.config.NATSServers == 1 || ctx.Err() != nil || time.Now().After(deadline) {
			return err
		}
	}
}

// waitReady waits until each process says that it is.
func (s *Stack) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for name, addr := range s.admins {
		for {
			err := devstack.HTTPReady("http://" + addr + "/readyz")(ctx)
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				return fmt.Errorf("%s is not ready: %w (its log is %s)", name, s.problem(addr, err), s.logPath(name))
			}
			pause(ctx, 100*time.Millisecond)
		}
	}
	return nil
}

// problem asks a process that is not ready why.
func (s *Stack) problem(addr string, otherwise error) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	body, err := get(ctx, "http://"+addr+"/readyz")
	if err != nil {
		return otherwise
	}
	var r pipeline.Readiness
	if json.Unmarshal(body, &r) != nil || len(r.Problems) == 0 {
		return otherwise
	}
	return errors.New(r.Problems[0].Check + ": " + r.Problems[0].Problem)
}

func (s *Stack) logPath(name string) string { return filepath.Join(s.config.Dir, "logs", name+".log") }

// EnvironmentFile is the name of the file, in the stack's directory, that tells the
// operator's commands, and any further process, where the stack is: KEY=value lines.
const EnvironmentFile = "env"

func (s *Stack) writeEnvironment() error {
	env := s.environment()
	env["WAYBILL_TO"] = s.HTTP[0]
	env["WAYBILL_ARCHIVE_LINGER"] = s.config.ArchiveLinger.String() // a further forwarder is to be like these
	for _, line := range s.config.Env {
		if value, ok := strings.CutPrefix(line, "WAYBILL_ARCHIVE_LINGER="); ok {
			env["WAYBILL_ARCHIVE_LINGER"] = value
		}
	}
	if s.TraceQueryURL != "" {
		env["WAYBILL_TRACE_QUERY_URL"] = s.TraceQueryURL
	}
	var lines []string
	for _, line := range s.traces.env(s.config.Env) {
		lines = append(lines, line+"\n")
	}
	for key, value := range env {
		lines = append(lines, key+"="+value+"\n")
	}
	slices.Sort(lines)
	path := filepath.Join(s.config.Dir, EnvironmentFile)
	// It holds the database's password.
	if err := os.WriteFile(path, []byte(strings.Join(lines, "")), 0o600); err != nil {
		return fmt.Errorf("say where the stack is: %w", err)
	}
	return nil
}

// Run starts again what ends, until ctx does; then it returns, and Stop is to be called.
func (s *Stack) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, m := range s.members() {
		wg.Go(func() { m.Run(ctx) })
	}
	wg.Wait()
}

func (s *Stack) members() []member {
	return slices.Concat(s.servers, s.ingests, s.forwarders, s.janitors)
}

// Stop stops everything that was started, ingests first and servers last, each within
// bounds.
func (s *Stack) Stop() error {
	var errs []error
	for _, group := range [][]member{s.ingests, s.forwarders, s.janitors} {
		errs = append(errs, supervisor.StopAll(supervisors(group)))
	}
	for _, m := range slices.Backward(s.servers) {
		errs = append(errs, m.Stop())
	}
	errs = append(errs, s.traces.stop()) // the processes had spans to send until they stopped
	s.traces = nil
	for _, name := range []string{EnvironmentFile, AdminFile} {
		if err := os.Remove(filepath.Join(s.config.Dir, name)); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Remove deletes what a stopped stack stored. The caller holds the lock of the directory,
// whose file is deleted too.
func (s *Stack) Remove() error {
	var err error
	if s.postgres != nil && s.postgres.server != nil {
		err = s.postgres.server.Remove() // it may not be below the directory
	}
	return errors.Join(err, os.RemoveAll(s.config.Dir))
}

func supervisors(members []member) []*supervisor.Supervisor {
	out := make([]*supervisor.Supervisor, len(members))
	for i, m := range members {
		out[i] = m.Supervisor
	}
	return out
}

// Hold keeps a part from being started again once it has ended, until Release.
func (s *Stack) Hold(name string) { s.named(name, (*supervisor.Supervisor).Hold) }

// Release ends a Hold.
func (s *Stack) Release(name string) { s.named(name, (*supervisor.Supervisor).Release) }

func (s *Stack) named(name string, do func(*supervisor.Supervisor)) {
	for _, m := range s.members() {
		if m.Name() == name {
			do(m.Supervisor)
		}
	}
}

// Part is one part of the stack, for people to look at.
type Part struct {
	Name  string
	PID   int
	Where string
}

// Parts lists what was started, servers first.
func (s *Stack) Parts() []Part {
	var out []Part
	for _, m := range s.members() {
		out = append(out, Part{Name: m.Name(), PID: m.PID(), Where: m.where})
	}
	return out
}

// get returns the body of an answer, whatever its status is.
func get(ctx context.Context, url string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	return io.ReadAll(io.LimitReader(response.Body, 64<<20))
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// OpenStore opens the stack's database for somebody who looks at it now and then.
func (s *Stack) OpenStore(ctx context.Context) (*pipeline.Store, error) {
	config := pipeline.DefaultStoreConfig(s.DatabaseURL)
	config.MaxConns = 2
	return pipeline.OpenStore(ctx, config, s.config.Lanes)
}
