package tracing

import (
	"fmt"
	"strconv"
	"strings"
)

// Protocols of OTLP.
const (
	ProtocolGRPC = "grpc"
	ProtocolHTTP = "http/protobuf"
)

// DefaultRatio is the part of the traces that is kept unless OTEL_TRACES_SAMPLER_ARG says
// otherwise.
const DefaultRatio = 0.01

// Names of samplers.
const (
	alwaysOn     = "always_on"
	alwaysOff    = "always_off"
	traceIDRatio = "traceidratio"
	parentBased  = "parentbased_"
)

// Settings are what OpenTelemetry's variables say of traces, but for those that the exporter
// reads itself. Start from FromEnv.
type Settings struct {
	Disabled  bool   // OTEL_SDK_DISABLED
	Exporter  string // OTEL_TRACES_EXPORTER: otlp or none; "": otlp if there is an endpoint
	Endpoint  string // OTEL_EXPORTER_OTLP_ENDPOINT, or that of traces; not used but for whether it is set
	Protocol  string // OTEL_EXPORTER_OTLP_PROTOCOL, or that of traces
	Sampler   string // OTEL_TRACES_SAMPLER
	Ratio     float64
	argument  string // OTEL_TRACES_SAMPLER_ARG
	badNumber error  // of the argument
}

// FromEnv reads the variables through get, which returns "" for one that is not set.
func FromEnv(get func(name string) string) Settings {
	first := FirstSet(get)
	s := Settings{
		Disabled: strings.EqualFold(first("", "OTEL_SDK_DISABLED"), "true"),
		Exporter: first("", "OTEL_TRACES_EXPORTER"),
		Endpoint: first("", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
		Protocol: first(ProtocolHTTP, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"),
		Sampler:  first(parentBased+traceIDRatio, "OTEL_TRACES_SAMPLER"),
		argument: first("", "OTEL_TRACES_SAMPLER_ARG"),
		Ratio:    DefaultRatio,
	}
	if s.argument != "" && strings.HasSuffix(s.Sampler, traceIDRatio) {
		s.Ratio, s.badNumber = strconv.ParseFloat(s.argument, 64)
	}
	return s
}

// FirstSet returns what finds the value of the first variable that is set and not blank, or else the
// fallback: what is said of one signal comes before what is said of all.
func FirstSet(get func(name string) string) func(fallback string, names ...string) string {
	return func(fallback string, names ...string) string {
		for _, name := range names {
			if value := strings.TrimSpace(get(name)); value != "" {
				return value
			}
		}
		return fallback
	}
}

// On reports whether spans are made at all.
func (s Settings) On() bool {
	return !s.Disabled && (s.Exporter == "otlp" || s.Exporter == "" && s.Endpoint != "")
}

// Validate names the first variable that cannot work.
func (s Settings) Validate() error {
	switch {
	case s.Disabled:
		return nil
	case s.Exporter != "" && s.Exporter != "otlp" && s.Exporter != "none":
		return fmt.Errorf("OTEL_TRACES_EXPORTER: %q; want otlp or none", s.Exporter)
	case !s.On():
		return nil
	case s.Protocol != ProtocolGRPC && s.Protocol != ProtocolHTTP:
		return fmt.Errorf("OTEL_EXPORTER_OTLP_PROTOCOL: %q; want %s or %s", s.Protocol, ProtocolGRPC, ProtocolHTTP)
	case s.badNumber != nil || s.Ratio < 0 || s.Ratio > 1 || s.Ratio != s.Ratio:
		return fmt.Errorf("OTEL_TRACES_SAMPLER_ARG: %q; want a part of 1, such as 0.01", s.argument)
	}
	switch strings.TrimPrefix(s.Sampler, parentBased) {
	case alwaysOn, alwaysOff, traceIDRatio:
		return nil
	}
	return fmt.Errorf("OTEL_TRACES_SAMPLER: %q; want %s, %s or %s, or one of these behind %s",
		s.Sampler, alwaysOn, alwaysOff, traceIDRatio, parentBased)
}
