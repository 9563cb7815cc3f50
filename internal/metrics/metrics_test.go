package metrics

import (
	"bytes"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	metricscollectorpb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	"google.golang.org/protobuf/proto"

	"github.com/waybillhq/waybill/internal/collector"
	"github.com/waybillhq/waybill/internal/metricsdoc"
	"github.com/waybillhq/waybill/internal/tracing"
)

// env is a FromEnv's get, of NAME=value pairs.
func env(pairs ...string) func(string) string {
	return func(name string) string {
		for _, pair := range pairs {
			if n, value, _ := strings.Cut(pair, "="); n == name {
				return value
			}
		}
		return ""
	}
}

func TestWhetherMetricsAreSent(t *testing.T) {
	const endpoint = "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1"
	for _, c := range []struct {
		env []string
		on  bool
	}{
		{nil, false},
		{[]string{endpoint}, true},
		{[]string{"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=http://127.0.0.1:1"}, true},
		{[]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://127.0.0.1:1"}, false},
		{[]string{"OTEL_METRICS_EXPORTER=otlp"}, true},
		{[]string{"OTEL_METRICS_EXPORTER=prometheus, otlp"}, true},
		{[]string{endpoint, "OTEL_METRICS_EXPORTER=none"}, false},
		{[]string{endpoint, "OTEL_METRICS_EXPORTER=prometheus"}, false},
		{[]string{endpoint, "OTEL_SDK_DISABLED=true"}, false},
	} {
		s := FromEnv(env(c.env...))
		if err := s.Validate(); err != nil || s.On() != c.on {
			t.Errorf("%v: on is %v, want %v; %v", c.env, s.On(), c.on, err)
		}
	}
}

func TestWrongSettingsAreNamed(t *testing.T) {
	for _, c := range []struct{ setting, says string }{
		{"OTEL_METRICS_EXPORTER=console", "otlp, prometheus, none"},
		{"OTEL_EXPORTER_OTLP_METRICS_PROTOCOL=http/json", "http/protobuf"},
	} {
		_, err := Start(t.Context(), FromEnv(env(c.setting, "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1")), tracing.Process{}, slog.New(slog.DiscardHandler))
		name, value, _ := strings.Cut(c.setting, "=")
		if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), value) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.setting, err)
		}
	}
}

// mustCount starts a provider by the environment, counts 3 and stops it.
func mustCount(t *testing.T, log *slog.Logger, pairs ...string) {
	t.Helper()
	for _, pair := range pairs {
		name, value, _ := strings.Cut(pair, "=")
		t.Setenv(name, value)
	}
	p, err := Start(t.Context(), FromEnv(env(pairs...)), tracing.Process{Kind: "test", ID: "one"}, log)
	if err != nil {
		t.Fatal(err)
	}
	counter, err := p.Meters().Meter("test").Int64Counter("waybill.test.count")
	if err != nil {
		t.Fatal(err)
	}
	counter.Add(t.Context(), 3)
	scraped := httptest.NewRecorder()
	p.Handler().ServeHTTP(scraped, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if text := scraped.Body.String(); !strings.Contains(text, "waybill_test_count_total{") || !strings.Contains(text, `service_name="waybill-test"`) {
		t.Errorf("for Prometheus there is\n%s", text)
	}
	began := time.Now()
	p.Stop()
	if took := time.Since(began); took > flushTimeout+5*time.Second { // an export may take 10 s
		t.Errorf("the stop took %v", took)
	}
}

func TestMetricsAreSentByGRPC(t *testing.T) {
	c, err := collector.Start("127.0.0.1:0", 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	mustCount(t, slog.New(slog.DiscardHandler), c.MetricsEnv()...)
	points := c.Metrics("waybill-test")["waybill.test.count"].GetSum().GetDataPoints()
	if len(points) != 1 || points[0].GetAsInt() != 3 {
		t.Errorf("received %v", points)
	}
}

func TestMetricsAreSentByHTTP(t *testing.T) {
	var names []string
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var request metricscollectorpb.ExportMetricsServiceRequest
		if err != nil || proto.Unmarshal(body, &request) != nil || r.URL.Path != "/v1/metrics" {
			t.Errorf("%s %s: %v, %d bytes", r.Method, r.URL.Path, err, len(body))
		}
		for _, resource := range request.GetResourceMetrics() {
			for _, scope := range resource.GetScopeMetrics() {
				for _, m := range scope.GetMetrics() {
					names = append(names, m.GetName())
				}
			}
		}
	}))
	mustCount(t, slog.New(slog.DiscardHandler), "OTEL_EXPORTER_OTLP_ENDPOINT="+server.URL)
	server.Close() // after which nobody writes to names
	if !slices.Contains(names, "waybill.test.count") {
		t.Errorf("received %v", names)
	}
}

// A receiver that is away holds nobody up, and is spoken of once.
func TestAReceiverThatIsAway(t *testing.T) {
	var log bytes.Buffer
	mustCount(t, slog.New(slog.NewTextHandler(&log, nil)), "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_TIMEOUT=300")
	if n := strings.Count(log.String(), "metrics cannot be sent"); n != 1 {
		t.Errorf("it was spoken of %d times, want 1:\n%s", n, &log)
	}
}

// What the Go runtime says of itself goes both ways, by the names in docs/metrics.md.
func TestMetricsOfTheRuntimeAreDocumented(t *testing.T) {
	documented, err := metricsdoc.Read(filepath.Join("..", "..", "docs", "metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	debug.SetMemoryLimit(1 << 40) // of which there is a metric only where there is one
	t.Cleanup(func() { debug.SetMemoryLimit(math.MaxInt64) })
	c, err := collector.Start("127.0.0.1:0", 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, pair := range c.MetricsEnv() {
		name, value, _ := strings.Cut(pair, "=")
		t.Setenv(name, value)
	}
	p, err := Start(t.Context(), FromEnv(env(c.MetricsEnv()...)), tracing.Process{Kind: "test", ID: "one"}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	scraped := httptest.NewRecorder()
	p.Handler().ServeHTTP(scraped, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	p.Stop()
	sent := c.Metrics("waybill-test")
	for _, m := range documented {
		if m.Process != "the go runtime" {
			continue
		}
		is, ok := sent[m.Name]
		if !ok || is.GetUnit() != m.Unit || strings.TrimSuffix(is.GetDescription(), ".") != m.Meaning {
			t.Errorf("%s is sent with unit %q and description %q", m.Name, is.GetUnit(), is.GetDescription())
		}
		if text := scraped.Body.String(); !strings.Contains(text, "\n"+m.Prometheus+"{") {
			t.Errorf("%s is not at /metrics:\n%s", m.Prometheus, text)
		}
		delete(sent, m.Name)
	}
	for name := range sent {
		t.Errorf("%s is sent and not documented", name)
	}
}
