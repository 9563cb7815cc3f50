package tracing

import (
	"strings"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/waybillhq/waybill/pipeline"
)

// sampler decides by the trace's id, and before that, where it is parentbased, by whether the
// parent is sampled. Unlike OpenTelemetry's own parentbased samplers it does not take every
// trace whose parent is sampled: that would let producers say how much is traced. With the same
// settings all processes decide alike.
type sampler struct {
	name        string
	byID        sdktrace.Sampler
	parentFirst bool
}

var _ sdktrace.Sampler = (*sampler)(nil)

// newSampler returns the sampler of a name that Settings.Validate knows.
func newSampler(name string, ratio float64) *sampler {
	s := &sampler{name: name}
	var of string
	of, s.parentFirst = strings.CutPrefix(name, parentBased)
	switch of {
	case alwaysOn:
		s.byID = sdktrace.AlwaysSample()
	case alwaysOff:
		s.byID = sdktrace.NeverSample()
	default:
		s.byID = sdktrace.TraceIDRatioBased(ratio)
	}
	return s
}

// event is a pipeline.Sampled.
func (s *sampler) event(parent trace.SpanContext, id trace.TraceID) bool {
	if s.parentFirst && parent.IsValid() && !parent.IsSampled() {
		return false
	}
	return s.byID.ShouldSample(sdktrace.SamplingParameters{TraceID: id}).Decision == sdktrace.RecordAndSample
}

// ShouldSample implements sdktrace.Sampler.
func (s *sampler) ShouldSample(p sdktrace.SamplingParameters) sdktrace.SamplingResult {
	parent := trace.SpanContextFromContext(p.ParentContext)
	result := sdktrace.SamplingResult{Decision: sdktrace.Drop, Tracestate: parent.TraceState()}
	if _, decided := pipeline.DecidedSpan(p.ParentContext); decided || s.event(parent, p.TraceID) {
		result.Decision = sdktrace.RecordAndSample
	}
	return result
}

// Description implements sdktrace.Sampler.
func (s *sampler) Description() string { return "waybill " + s.name }
