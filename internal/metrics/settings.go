package metrics

import (
	"fmt"
	"slices"
	"strings"

	"github.com/waybillhq/waybill/internal/tracing"
)

// Names of exporters.
const (
	exporterOTLP       = "otlp"
	exporterPrometheus = "prometheus"
	exporterNone       = "none"
)

// Settings are what OpenTelemetry's variables say of metrics, but for those that the exporter and
// the SDK read themselves. Start from FromEnv.
type Settings struct {
	Disabled  bool     // OTEL_SDK_DISABLED: no OTLP; /metrics stays
	Exporters []string // OTEL_METRICS_EXPORTER; empty: otlp if there is an endpoint
	Endpoint  string   // OTEL_EXPORTER_OTLP_ENDPOINT, or that of metrics; not used but for whether it is set
	Protocol  string   // OTEL_EXPORTER_OTLP_PROTOCOL, or that of metrics
}

// FromEnv reads the variables through get, which returns "" for one that is not set.
func FromEnv(get func(name string) string) Settings {
	first := func(fallback string, names ...string) string {
		for _, name := range names {
			if value := strings.TrimSpace(get(name)); value != "" {
				return value
			}
		}
		return fallback
	}
	s := Settings{
		Disabled: strings.EqualFold(first("", "OTEL_SDK_DISABLED"), "true"),
		Endpoint: first("", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
		Protocol: first(tracing.ProtocolHTTP, "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"),
	}
	for name := range strings.SplitSeq(first("", "OTEL_METRICS_EXPORTER"), ",") {
		if name = strings.TrimSpace(name); name != "" {
			s.Exporters = append(s.Exporters, name)
		}
	}
	return s
}

// On reports whether metrics are sent by OTLP.
func (s Settings) On() bool {
	return !s.Disabled && (slices.Contains(s.Exporters, exporterOTLP) || len(s.Exporters) == 0 && s.Endpoint != "")
}

// Validate names the first variable that cannot work.
func (s Settings) Validate() error {
	if s.Disabled {
		return nil
	}
	for _, name := range s.Exporters {
		if name != exporterOTLP && name != exporterPrometheus && name != exporterNone {
			return fmt.Errorf("OTEL_METRICS_EXPORTER: %q; want %s, %s, %s, or several of them with commas", name, exporterOTLP, exporterPrometheus, exporterNone)
		}
	}
	if s.On() && s.Protocol != tracing.ProtocolGRPC && s.Protocol != tracing.ProtocolHTTP {
		return fmt.Errorf("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL: %q; want %s or %s", s.Protocol, tracing.ProtocolGRPC, tracing.ProtocolHTTP)
	}
	return nil
}
