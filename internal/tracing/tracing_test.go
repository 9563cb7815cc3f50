package tracing

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"go.opentelemetry.io/otel/trace"

	"github.com/waybillhq/waybill/internal/collector"
	"github.com/waybillhq/waybill/pipeline"
)

func env(pairs ...string) func(string) string {
	return func(name string) string {
		for _, pair := range pairs {
			if value, ok := strings.CutPrefix(pair, name+"="); ok {
				return value
			}
		}
		return ""
	}
}

func TestSpansAreMadeOnlyWhereTheyAreAskedFor(t *testing.T) {
	const endpoint = "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1"
	for _, c := range []struct {
		env []string
		on  bool
	}{
		{nil, false},
		{[]string{"OTEL_TRACES_SAMPLER=always_on"}, false},
		{[]string{endpoint}, true},
		{[]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://127.0.0.1:1"}, true},
		{[]string{"OTEL_TRACES_EXPORTER=otlp"}, true},
		{[]string{endpoint, "OTEL_TRACES_EXPORTER=none"}, false},
		{[]string{endpoint, "OTEL_SDK_DISABLED=true"}, false},
	} {
		s := FromEnv(env(c.env...))
		if err := s.Validate(); err != nil || s.On() != c.on {
			t.Errorf("%v: on is %v, want %v; %v", c.env, s.On(), c.on, err)
		}
		p, err := Start(t.Context(), s, Process{Kind: "test"}, slog.New(slog.DiscardHandler))
		if err != nil || (p.Pipeline() != nil) != c.on {
			t.Errorf("%v: a tracing is there: %v, want %v; %v", c.env, p.Pipeline() != nil, c.on, err)
		}
		p.Stop()
	}
}

func TestWrongSettingsAreNamed(t *testing.T) {
	for _, c := range []struct{ setting, says string }{
		{"OTEL_TRACES_EXPORTER=zipkin", "otlp or none"},
		{"OTEL_EXPORTER_OTLP_PROTOCOL=http/json", "http/protobuf"},
		{"OTEL_TRACES_SAMPLER=jaeger_remote", "traceidratio"},
		{"OTEL_TRACES_SAMPLER_ARG=1.5", "0.01"},
		{"OTEL_TRACES_SAMPLER_ARG=all", "0.01"},
	} {
		_, err := Start(t.Context(), FromEnv(env(c.setting, "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1")), Process{}, slog.New(slog.DiscardHandler))
		name, value, _ := strings.Cut(c.setting, "=")
		if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), value) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.setting, err)
		}
	}
}

// traces is the part of many traces that a sampler takes, of parents that are sampled, that are
// not, and without a parent.
func traces(s *sampler) (sampled, unsampled, none float64) {
	const count = 20_000
	random := rand.New(rand.NewPCG(1, 2))
	for range count {
		var id trace.TraceID
		binary.BigEndian.PutUint64(id[:8], random.Uint64())
		binary.BigEndian.PutUint64(id[8:], random.Uint64())
		parent := trace.SpanContextConfig{TraceID: id, SpanID: trace.SpanID{1}, Remote: true}
		for _, p := range []struct {
			flags trace.TraceFlags
			into  *float64
		}{{trace.FlagsSampled, &sampled}, {0, &unsampled}} {
			parent.TraceFlags = p.flags
			if s.event(trace.NewSpanContext(parent), id) {
				*p.into += 1.0 / count
			}
		}
		if s.event(trace.SpanContext{}, id) {
			none += 1.0 / count
		}
	}
	return sampled, unsampled, none
}

func TestAProducerCannotHaveEverythingTraced(t *testing.T) {
	for _, c := range []struct {
		sampler                  string
		sampled, unsampled, none float64
	}{
		{"parentbased_traceidratio", 0.1, 0, 0.1},
		{"traceidratio", 0.1, 0.1, 0.1},
		{"parentbased_always_on", 1, 0, 1},
		{"always_on", 1, 1, 1},
		{"parentbased_always_off", 0, 0, 0},
		{"always_off", 0, 0, 0},
	} {
		sampled, unsampled, none := traces(newSampler(c.sampler, 0.1))
		for _, part := range []struct {
			of        string
			got, want float64
		}{{"sampled parents", sampled, c.sampled}, {"parents that are not", unsampled, c.unsampled}, {"no parent", none, c.none}} {
			if part.got < part.want-0.01 || part.got > part.want+0.01 {
				t.Errorf("%s takes %.3f of the traces with %s, want %.3f", c.sampler, part.got, part.of, part.want)
			}
		}
	}
}

// A receiver that is away holds nobody up, and is spoken of once.
func TestAReceiverThatIsAway(t *testing.T) {
	c, err := collector.Start("127.0.0.1:0", 10)
	if err != nil {
		t.Fatal(err)
	}
	for _, pair := range c.Env(1) {
		name, value, _ := strings.Cut(pair, "=")
		t.Setenv(name, value)
	}
	t.Setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "300")
	settings := FromEnv(env(c.Env(1)...))
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	p, err := Start(t.Context(), settings, Process{Kind: "test"}, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	tracer := p.sdk.Tracer("test")
	for range 2 {
		_, span := tracer.Start(context.Background(), "a span")
		span.End()
		if err := p.sdk.ForceFlush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	p.Stop()
	if took := time.Since(began); took > flushTimeout+5*time.Second { // an export may take 10 s
		t.Errorf("the stop took %v", took)
	}
	if n := strings.Count(log.String(), "spans cannot be sent"); n != 1 {
		t.Errorf("it was spoken of %d times, want 1:\n%s", n, &log)
	}
}

// From the producer's word to the receiver: of requests whose events are all sampled by their
// producer, each in a trace of its own, no more than the configured part has spans.
func TestSpansOfAProducerThatSamplesEverything(t *testing.T) {
	const events, ratio = 5000, 0.1
	spans := collector.NewRecent(10 * events)
	receiver, err := collector.Listen("127.0.0.1:0", spans.Add)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := receiver.Close(); err != nil {
			t.Error(err)
		}
	}()
	settings := append(receiver.Env(), fmt.Sprint("OTEL_TRACES_SAMPLER_ARG=", ratio), "OTEL_BSP_MAX_QUEUE_SIZE=65536")
	for _, pair := range settings {
		name, value, _ := strings.Cut(pair, "=")
		t.Setenv(name, value)
	}
	p, err := Start(t.Context(), FromEnv(env(settings...)), Process{Kind: "test"}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(3, 4))
	for i := range events {
		parent := fmt.Sprintf("00-%016x%016x-00f067aa0ba902b7-01", random.Uint64(), random.Uint64())
		event, err := pipeline.NewEvent(&pb.CloudEvent{
			Id: fmt.Sprint(i), Source: "/s", Type: "t", SpecVersion: "1.0",
			Attributes: map[string]*pb.CloudEventAttributeValue{"traceparent": {Attr: &pb.CloudEventAttributeValue_CeString{CeString: parent}}},
		}, pipeline.DefaultMaxEventBytes)
		if err != nil {
			t.Fatal(err)
		}
		p.Pipeline().Accept("grpc", time.Now(), []pipeline.Event{event}).Answered(nil)
	}
	p.Stop()
	if got := float64(len(spans.Spans())) / events; got < ratio-0.02 || got > ratio+0.02 {
		t.Errorf("%.3f of the events have a span of their acceptance, want %g", got, ratio)
	}
}
