package jaeger

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/waybillhq/waybill/internal/collector"
)

// answer is what every question is answered with.
type answer[T any] struct {
	Data   []T      `json:"data"`
	Total  int      `json:"total"`
	Limit  int      `json:"limit"`
	Offset int      `json:"offset"`
	Errors []failed `json:"errors"`
}

type failed struct {
	Code int    `json:"code,omitempty"` // as of HTTP
	Msg  string `json:"msg"`
}

type trace struct {
	TraceID   string             `json:"traceID"`
	Spans     []span             `json:"spans"`
	Processes map[string]process `json:"processes"` // by the spans' ProcessID
	Warnings  []string           `json:"warnings"`
}

type span struct {
	TraceID       string      `json:"traceID"`
	SpanID        string      `json:"spanID"`
	ParentSpanID  string      `json:"parentSpanID,omitempty"` // of old servers, in place of the reference
	OperationName string      `json:"operationName"`
	References    []reference `json:"references"`
	StartTime     int64       `json:"startTime"` // microseconds since 1970
	Duration      int64       `json:"duration"`  // microseconds
	Tags          []tag       `json:"tags"`
	Logs          []struct{}  `json:"logs"`
	ProcessID     string      `json:"processID"`
	Warnings      []string    `json:"warnings"`
}

type reference struct {
	RefType string `json:"refType"`
	TraceID string `json:"traceID"`
	SpanID  string `json:"spanID"`
}

type process struct {
	ServiceName string `json:"serviceName"`
	Tags        []tag  `json:"tags"`
}

type tag struct {
	Key   string `json:"key"`
	Type  string `json:"type"`
	Value any    `json:"value"`
}

const (
	childOf     = "CHILD_OF"
	followsFrom = "FOLLOWS_FROM"

	tagKind     = "span.kind"
	tagError    = "error"
	tagStatus   = "otel.status_code"
	tagFailure  = "otel.status_description"
	tagInstance = "service.instance.id"

	statusError = "ERROR"
)

// kinds are the values of tagKind.
var kinds = map[string]tracepb.Span_SpanKind{
	"internal": tracepb.Span_SPAN_KIND_INTERNAL, "server": tracepb.Span_SPAN_KIND_SERVER, "client": tracepb.Span_SPAN_KIND_CLIENT,
	"producer": tracepb.Span_SPAN_KIND_PRODUCER, "consumer": tracepb.Span_SPAN_KIND_CONSUMER,
}

// Digits of ids.
const (
	traceDigits = 32
	spanDigits  = 16
)

// padded is an id whose leading zeros were left out.
func padded(id string, digits int) string {
	return strings.Repeat("0", max(0, digits-len(id))) + strings.ToLower(id)
}

// spans are the spans of a trace.
func (t *trace) spans() []collector.Span {
	out := make([]collector.Span, 0, len(t.Spans))
	for _, s := range t.Spans {
		out = append(out, s.span(t.Processes[s.ProcessID]))
	}
	return out
}

func (s *span) span(p process) collector.Span {
	start := time.UnixMicro(s.StartTime)
	out := collector.Span{
		TraceID: padded(s.TraceID, traceDigits), ID: padded(s.SpanID, spanDigits),
		Name: s.OperationName, Service: p.ServiceName, Instance: textOf(p.Tags, tagInstance),
		Start: start, End: start.Add(s.took()), Attributes: map[string]string{},
	}
	if s.ParentSpanID != "" {
		out.Parent = padded(s.ParentSpanID, spanDigits)
	}
	for _, r := range s.References {
		trace, id := padded(r.TraceID, traceDigits), padded(r.SpanID, spanDigits)
		if r.RefType == childOf && trace == out.TraceID && out.Parent == "" {
			out.Parent = id
		} else if r.RefType != childOf {
			out.Links = append(out.Links, collector.Link{TraceID: trace, ID: id})
		}
	}
	for _, t := range s.Tags {
		out.Attributes[t.Key] = fmt.Sprint(t.Value)
	}
	out.Kind = kinds[out.Attributes[tagKind]]
	if out.Attributes[tagError] == "true" || out.Attributes[tagStatus] == statusError {
		out.Failure = cmp.Or(out.Attributes[tagFailure], tagError)
	}
	for _, key := range []string{tagKind, tagError, tagStatus, tagFailure} {
		delete(out.Attributes, key)
	}
	return out
}

// took is how long a span took, none less than nothing: a server passes on what it was sent, and whoever
// draws it would have to begin behind its end.
func (s *span) took() time.Duration {
	return time.Duration(min(max(s.Duration, 0), math.MaxInt64/int64(time.Microsecond))) * time.Microsecond
}

func textOf(tags []tag, key string) string {
	for _, t := range tags {
		if t.Key == key {
			return fmt.Sprint(t.Value)
		}
	}
	return ""
}

// traceOf is the trace of some spans, of which there is one or more.
func traceOf(spans []collector.Span) trace {
	type owner struct{ service, instance string }
	t := trace{TraceID: spans[0].TraceID, Processes: map[string]process{}}
	names := map[owner]string{}
	for i := range spans {
		s := &spans[i]
		of := owner{s.Service, s.Instance}
		name, known := names[of]
		if !known {
			name = fmt.Sprint("p", len(names)+1)
			names[of] = name
			t.Processes[name] = process{ServiceName: s.Service, Tags: []tag{textTag(tagInstance, s.Instance)}}
		}
		t.Spans = append(t.Spans, newSpan(s, name))
	}
	return t
}

func textTag(key, value string) tag { return tag{key, "string", value} }

func newSpan(s *collector.Span, processID string) span {
	out := span{
		TraceID: s.TraceID, SpanID: s.ID, OperationName: s.Name, ProcessID: processID, References: []reference{}, Logs: []struct{}{},
		StartTime: s.Start.UnixMicro(), Duration: max(0, s.Took().Microseconds()),
	}
	if s.Parent != "" {
		out.References = append(out.References, reference{childOf, s.TraceID, s.Parent})
	}
	for _, link := range s.Links {
		out.References = append(out.References, reference{followsFrom, link.TraceID, link.ID})
	}
	for _, key := range slices.Sorted(maps.Keys(s.Attributes)) {
		out.Tags = append(out.Tags, textTag(key, s.Attributes[key]))
	}
	for name, kind := range kinds {
		if kind == s.Kind {
			out.Tags = append(out.Tags, textTag(tagKind, name))
		}
	}
	if s.Failure != "" {
		out.Tags = append(out.Tags, tag{tagError, "bool", true}, textTag(tagStatus, statusError), textTag(tagFailure, s.Failure))
	}
	return out
}
