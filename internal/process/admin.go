package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"slices"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/metric"

	"github.com/waybillhq/waybill/internal/metrics"
	"github.com/waybillhq/waybill/internal/tracing"
	"github.com/waybillhq/waybill/pipeline"
)

// check is one thing that a process looks at to say whether it is ready. It returns nil or
// what is wrong, in words for people.
type check struct {
	name string
	look func() error
	// degrading checks do not make a process unready: it does its work, and somebody
	// should know.
	degrading bool
}

// admin serves a process's health, metrics and profiles.
type admin struct {
	id       string // of the process
	listener net.Listener
	metrics  *metrics.Provider
	meters   metric.MeterProvider // of metrics; a test may record what is made
	started  time.Time

	mu      sync.Mutex // guards what follows
	checks  []check
	since   map[string]time.Time // of failing checks
	buffers []func() []pipeline.Buffer
}

// newAdmin listens at once, so that a process answers /livez while it waits to be ready.
func newAdmin(ctx context.Context, identity Identity, kind string, log *slog.Logger) (*admin, error) {
	a := &admin{
		id: identity.name(), since: map[string]time.Time{}, started: time.Now().UTC(),
	}
	var err error
	a.metrics, err = metrics.Start(ctx, metrics.FromEnv(identity.getenv), tracing.Process{Kind: kind, ID: a.id, Version: version()}, log)
	if err != nil {
		return nil, err
	}
	a.meters = a.metrics.Meters()
	if a.listener, err = net.Listen("tcp", identity.AdminAddr); err != nil {
		a.metrics.Stop()
		return nil, fmt.Errorf("admin address: %w; give each process on a machine its own WAYBILL_ADMIN_ADDR", err)
	}
	return a, nil
}

func (a *admin) meter(name string) metric.Meter { return a.meters.Meter(name) }

// add makes readiness depend on a check; degrade only mentions it.
func (a *admin) add(name string, look func() error)     { a.append(check{name, look, false}) }
func (a *admin) degrade(name string, look func() error) { a.append(check{name, look, true}) }

func (a *admin) append(c check) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.checks = append(a.checks, c)
}

// watch exports how full some buffers are, and mentions those that are nearly full.
func (a *admin) watch(buffers func() []pipeline.Buffer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.buffers) == 0 {
		a.checks = append(a.checks, check{"buffers", a.nearlyFull, true})
	}
	a.buffers = append(a.buffers, buffers)
}

// nearFull is the part of a buffer from which on somebody should know. EVENTS sheds at 0.9.
const nearFull = 0.8

// nearlyFull names the buffers that are nearly full, or returns nil. The caller holds mu.
func (a *admin) nearlyFull() error {
	var errs []error
	for _, list := range a.buffers {
		for _, b := range list() {
			if !b.Busy && b.Fill() >= nearFull {
				errs = append(errs, fmt.Errorf("%s: %d of %d %s (%.0f %%)", b.Name, b.Used, b.Limit, b.Unit, 100*b.Fill()))
			}
		}
	}
	return errors.Join(errs...)
}

// Problem is one failing check.
type Problem struct {
	Check   string    `json:"check"`
	Problem string    `json:"problem"`
	Since   time.Time `json:"since"` // when it was first seen failing
}

// Readiness is the body of /readyz.
type Readiness struct {
	Ready    bool      `json:"ready"`
	Problems []Problem `json:"problems,omitempty"` // what makes it unready
	Degraded []Problem `json:"degraded,omitempty"` // what somebody should know
}

// readiness runs the checks.
func (a *admin) readiness() Readiness {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := Readiness{Ready: true}
	if len(a.checks) == 0 {
		out.Ready = false
		out.Problems = []Problem{{Check: "start", Problem: "it has not begun to work yet; its log says what it waits for", Since: a.started}}
	}
	for _, c := range a.checks {
		err := c.look()
		if err == nil {
			delete(a.since, c.name)
			continue
		}
		if a.since[c.name].IsZero() {
			a.since[c.name] = time.Now().UTC()
		}
		p := Problem{Check: c.name, Problem: err.Error(), Since: a.since[c.name]}
		if c.degrading {
			out.Degraded = append(out.Degraded, p)
			continue
		}
		out.Ready = false
		out.Problems = append(out.Problems, p)
	}
	return out
}

// problems is what is wrong, and since when, in a few words, for the heartbeat; empty: nothing.
func (a *admin) problems() string {
	r := a.readiness()
	var all []string
	for _, p := range slices.Concat(r.Problems, r.Degraded) {
		all = append(all, fmt.Sprintf("%s: %s (since %s)", p.Check, p.Problem, p.Since.Format(time.RFC3339)))
	}
	text := strings.Join(all, "; ")
	return strings.ToValidUTF8(text[:min(len(text), maxProblems)], "")
}

// maxProblems bounds what a heartbeat says, in bytes.
const maxProblems = 1 << 10

func (a *admin) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		r := a.readiness()
		w.Header().Set("Content-Type", "application/json")
		if !r.Ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(r) // the reader has gone
	})
	mux.Handle("GET /metrics", a.metrics.Handler())
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

// run serves until ctx ends.
func (a *admin) run(ctx context.Context) error {
	server := &http.Server{Handler: a.handler(), ReadHeaderTimeout: 10 * time.Second}
	stopped := make(chan error, 1)
	go func() {
		<-ctx.Done()
		stopped <- server.Close()
	}()
	if err := server.Serve(a.listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("admin server: %w", err)
	}
	return <-stopped
}
