// Package metrics exports the metrics of a process: always for Prometheus, and to an OTLP receiver
// too where OpenTelemetry's environment variables ask for it. docs/metrics.md lists both the
// variables and the metrics.
package metrics

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/contrib/instrumentation/runtime"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"

	"github.com/waybillhq/waybill/internal/tracing"
)

// flushTimeout bounds how long a process that stops waits for its last metrics to be taken: a
// receiver that is away must not hold up a stop.
const flushTimeout = 3 * time.Second

// Provider makes the instruments of a process and exports them.
type Provider struct {
	sdk      *sdkmetric.MeterProvider
	registry *prometheus.Registry
	log      *slog.Logger
}

// Start returns a provider. What it starts ends with Stop. A receiver that cannot be reached is
// no error: log is told when that begins and when it ends; counts are cumulative, so nothing but
// their course meanwhile is lost.
func Start(ctx context.Context, settings Settings, p tracing.Process, log *slog.Logger) (*Provider, error) {
	if err := settings.Validate(); err != nil {
		return nil, err
	}
	about, err := tracing.Resource(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	out := &Provider{registry: prometheus.NewRegistry(), log: log}
	out.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	scraped, err := otelprometheus.New(otelprometheus.WithRegisterer(out.registry))
	if err != nil {
		return nil, fmt.Errorf("metrics for Prometheus: %w", err)
	}
	options := []sdkmetric.Option{sdkmetric.WithResource(about), sdkmetric.WithReader(scraped)}
	if settings.On() {
		exporter, err := newExporter(ctx, settings.Protocol)
		if err != nil {
			return nil, fmt.Errorf("metrics by OTLP: %w", err)
		}
		options = append(options, sdkmetric.WithReader(sdkmetric.NewPeriodicReader(&watchedExporter{Exporter: exporter, log: log})))
	}
	out.sdk = sdkmetric.NewMeterProvider(options...)
	// The collectors above are for Prometheus alone.
	if err := runtime.Start(runtime.WithMeterProvider(out.sdk)); err != nil {
		return nil, fmt.Errorf("metrics of the Go runtime: %w", err)
	}
	return out, nil
}

// newExporter returns one that reads its own settings, such as the endpoint, headers and
// certificates, from the environment.
func newExporter(ctx context.Context, protocol string) (sdkmetric.Exporter, error) {
	if protocol == tracing.ProtocolGRPC {
		return otlpmetricgrpc.New(ctx)
	}
	return otlpmetrichttp.New(ctx)
}

// Meters makes instruments.
func (p *Provider) Meters() metric.MeterProvider { return p.sdk }

// Handler answers Prometheus.
func (p *Provider) Handler() http.Handler {
	return promhttp.HandlerFor(p.registry, promhttp.HandlerOpts{})
}

// Stop sends what is left, as far as that can be done in flushTimeout.
func (p *Provider) Stop() {
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	if err := p.sdk.Shutdown(ctx); err != nil {
		p.log.Warn("the last metrics were not sent before the stop", "error", err)
	}
}
