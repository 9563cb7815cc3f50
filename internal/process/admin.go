package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
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
	addr     string
	listener net.Listener
	registry *prometheus.Registry
	provider *sdkmetric.MeterProvider
	started  time.Time

	mu     sync.Mutex // guards what follows
	checks []check
	since  map[string]time.Time // of failing checks
}

// newAdmin listens at once, so that a process answers /livez while it waits to be ready.
func newAdmin(addr string) (*admin, error) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	exporter, err := otelprometheus.New(otelprometheus.WithRegisterer(registry))
	if err != nil {
		return nil, fmt.Errorf("metrics exporter: %w", err)
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("admin address: %w; give each process on a machine its own WAYBILL_ADMIN_ADDR", err)
	}
	return &admin{
		addr: addr, listener: listener, registry: registry, since: map[string]time.Time{},
		started:  time.Now().UTC(),
		provider: sdkmetric.NewMeterProvider(sdkmetric.WithReader(exporter)),
	}, nil
}

func (a *admin) meter(name string) metric.Meter { return a.provider.Meter(name) }

// add makes readiness depend on a check; degrade only mentions it.
func (a *admin) add(name string, look func() error)     { a.append(check{name, look, false}) }
func (a *admin) degrade(name string, look func() error) { a.append(check{name, look, true}) }

func (a *admin) append(c check) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.checks = append(a.checks, c)
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

// problem is the first failing check in a line, for the heartbeat.
func (a *admin) problem() string {
	r := a.readiness()
	for _, p := range append(r.Problems, r.Degraded...) {
		return p.Check + ": " + p.Problem
	}
	return ""
}

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
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.registry, promhttp.HandlerOpts{}))
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
