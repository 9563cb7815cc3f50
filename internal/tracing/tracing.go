// Package tracing sends the spans of a process to an OTLP receiver, as OpenTelemetry's
// environment variables say. docs/tracing.md lists them.
package tracing

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	"github.com/waybillhq/waybill/pipeline"
)

// flushTimeout bounds how long a process that stops waits for its last spans to be taken: a
// receiver that is away must not hold up a stop.
const flushTimeout = 3 * time.Second

// Provider makes the spans of a process and sends them. nil is one that makes none.
type Provider struct {
	sdk     *sdktrace.TracerProvider
	sampler *sampler
	log     *slog.Logger
}

// Process says whose the spans, or the metrics, are.
type Process struct {
	Kind    string // such as pipeline.KindIngest; service.name is waybill-<kind>
	ID      string // service.instance.id
	Version string
}

// Start returns the provider that the settings ask for, or nil if they ask for none. What it
// starts ends with Stop. A receiver that cannot be reached is no error: log is told when that
// begins and when it ends, and spans are dropped meanwhile.
func Start(ctx context.Context, settings Settings, p Process, log *slog.Logger) (*Provider, error) {
	if err := settings.Validate(); err != nil {
		return nil, err
	}
	if !settings.On() {
		return nil, nil
	}
	exporter, err := newExporter(ctx, settings.Protocol)
	if err != nil {
		return nil, fmt.Errorf("tracing: %w", err)
	}
	about, err := Resource(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("tracing: %w", err)
	}
	s := newSampler(settings.Sampler, settings.Ratio)
	return &Provider{
		sampler: s, log: log,
		sdk: sdktrace.NewTracerProvider(
			sdktrace.WithBatcher(&watchedExporter{SpanExporter: exporter, log: log}),
			sdktrace.WithResource(about), sdktrace.WithSampler(s), sdktrace.WithIDGenerator(ids{})),
	}, nil
}

// Resource is what spans and metrics say of the process that they are of.
func Resource(ctx context.Context, p Process) (*resource.Resource, error) {
	about, err := resource.New(ctx, resource.WithAttributes(
		semconv.ServiceName("waybill-"+p.Kind), semconv.ServiceInstanceID(p.ID), semconv.ServiceVersion(p.Version),
	), resource.WithTelemetrySDK(), resource.WithFromEnv()) // what the environment says comes last
	if err != nil {
		return nil, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	return about, nil
}

// newExporter returns one that reads its own settings, such as the endpoint, headers and
// certificates, from the environment.
func newExporter(ctx context.Context, protocol string) (sdktrace.SpanExporter, error) {
	if protocol == ProtocolGRPC {
		return otlptracegrpc.New(ctx)
	}
	return otlptracehttp.New(ctx)
}

// Pipeline is what the parts of package pipeline make spans with; nil if p is.
func (p *Provider) Pipeline() *pipeline.Tracing {
	if p == nil {
		return nil
	}
	return pipeline.NewTracing(p.sdk, p.sampler.event)
}

// Stop sends what is left, as far as that can be done in flushTimeout.
func (p *Provider) Stop() {
	if p == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	if err := p.sdk.Shutdown(ctx); err != nil {
		p.log.Warn("some spans were not sent before the stop", "error", err)
	}
}
