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
	"time"

	"go.opentelemetry.io/otel/metric"

	"github.com/waybillhq/waybill/internal/metrics"
	"github.com/waybillhq/waybill/internal/tracing"
	"github.com/waybillhq/waybill/pipeline"
)

// admin serves a process's health, metrics and profiles.
type admin struct {
	id       string // of the process
	listener net.Listener
	metrics  *metrics.Provider
	meters   metric.MeterProvider // of metrics; a test may record what is made
	checks   *pipeline.Checks
}

// newAdmin listens at once, so that a process answers /livez while it waits to be ready.
func newAdmin(ctx context.Context, identity Identity, kind string, log *slog.Logger) (*admin, error) {
	a := &admin{id: identity.name(), checks: pipeline.NewChecks()}
	var err error
	a.metrics, err = metrics.Start(ctx, metrics.FromEnv(identity.getenv), tracing.Process{Kind: kind, ID: a.id, Version: version()}, log)
	if err != nil {
		return nil, err
	}
	a.meters = a.metrics.Meters()
	if a.listener, err = net.Listen("tcp", identity.AdminAddr); err != nil {
		a.metrics.Stop()
		return nil, fmt.Errorf("admin addr: %w; give each process on a machine its own (WAYBILL_ADMIN_ADDR)", err)
	}
	return a, nil
}

func (a *admin) meter(name string) metric.Meter { return a.meters.Meter(name) }

// adminPaths is for who opens the address to see what it has.
const adminPaths = `/livez          whether the process lives
/readyz         whether it is ready, what is wrong, and since when
/metrics        for Prometheus
/debug/pprof/   profiles
`

func (a *admin) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, adminPaths) })
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		r := a.checks.Readiness()
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
