package devrun

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/waybillhq/waybill/internal/collector"
	"github.com/waybillhq/waybill/internal/jaeger"
	"github.com/waybillhq/waybill/internal/tracing"
)

// leastSpans is what it makes sense to keep: those of some ten events.
const leastSpans = 100

// queryHeaderTimeout bounds how long a question's header may take to come.
const queryHeaderTimeout = 5 * time.Second

// traces are the newest spans of the stack's processes, which come here by OTLP, and the server
// that offers them. nil are none.
type traces struct {
	receiver *collector.Receiver
	query    *http.Server
	ended    chan error
}

// keepTraces starts to keep traces, if that is asked for.
func (s *Stack) keepTraces() error {
	if s.config.KeepSpans == 0 || saysOfTraces(s.config.Env) {
		return nil
	}
	otlp, err := s.ports.addr("otlp")
	if err != nil {
		return err
	}
	addr, err := s.ports.addr("traces")
	if err != nil {
		return err
	}
	recent := collector.NewRecent(s.config.KeepSpans)
	receiver, err := collector.Listen(otlp, recent.Add)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return errors.Join(fmt.Errorf("listen for questions about traces on %s: %w", addr, err), receiver.Close())
	}
	s.traces = &traces{
		receiver: receiver, ended: make(chan error, 1),
		query: &http.Server{Handler: jaeger.Handler(recent), ReadHeaderTimeout: queryHeaderTimeout},
	}
	go func(t *traces) { t.ended <- t.query.Serve(listener) }(s.traces)
	s.TraceQueryURL = "http://" + addr
	return nil
}

// saysOfTraces reports whether an environment says where spans go, or that there are to be none.
func saysOfTraces(env []string) bool {
	settings := tracing.FromEnv(lookup(env))
	return settings.Disabled || settings.Exporter != "" || settings.Endpoint != ""
}

// lookup finds a variable among KEY=value; of two with one name the last counts.
func lookup(env []string) func(name string) string {
	return func(name string) (value string) {
		for _, line := range env {
			if key, v, ok := strings.Cut(line, "="); ok && key == name {
				value = v
			}
		}
		return value
	}
}

// defaults are what the processes' environment may say otherwise: the spans come soon, and few are
// dropped.
func (t *traces) defaults() []string {
	if t == nil {
		return nil
	}
	return []string{"OTEL_BSP_SCHEDULE_DELAY=500", "OTEL_BSP_MAX_QUEUE_SIZE=8192"}
}

// env is what it may not: where the spans go to; and, unless it says so itself, that every event is
// sampled.
func (t *traces) env(configured []string) []string {
	if t == nil {
		return nil
	}
	out := t.receiver.Env()
	get := lookup(configured)
	if get("OTEL_TRACES_SAMPLER") == "" && get("OTEL_TRACES_SAMPLER_ARG") == "" {
		out = append(out, "OTEL_TRACES_SAMPLER=always_on")
	}
	return out
}

// stop ends the servers. What they kept is gone.
func (t *traces) stop() error {
	if t == nil {
		return nil
	}
	err := t.query.Close()
	if served := <-t.ended; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, fmt.Errorf("serve traces: %w", served))
	}
	return errors.Join(err, t.receiver.Close())
}
