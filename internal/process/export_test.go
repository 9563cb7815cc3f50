package process

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/waybillhq/waybill/internal/collector"
	"github.com/waybillhq/waybill/pipeline"
)

// The settings are exported as they are in force, and no secret is among them.
func TestSettingsInForce(t *testing.T) {
	ingest, forwarder := &Ingest{}, &Forwarder{}
	mustParse(t, ingest, "--database-url=postgres://u:geheim@h/d", "--nats-url=nats://u:geheim@n", "--event-ttl=5h")
	mustParse(t, forwarder, "--ingress-endpoint=here:1", "--ingress-password=geheim", "--ingress-headers=key=geheim", "--s3-secret-key=geheim", "--in-flight=7")
	for _, c := range []struct {
		config        any
		setting, want string
	}{{ingest, "event-ttl", "5h0m0s"}, {ingest, "lanes", "16"}, {forwarder, "in-flight", "7"}, {forwarder, "ingress-endpoint", "here:1"}} {
		settings, err := settingsOf(c.config)
		if err != nil {
			t.Fatal(err)
		}
		if settings[c.setting] != c.want {
			t.Errorf("%s is %q, want %q", c.setting, settings[c.setting], c.want)
		}
		for name, value := range settings {
			if strings.Contains(value, "geheim") {
				t.Errorf("%s is shown: %q", name, value)
			}
		}
	}
}

// A process sends by OTLP what it serves to Prometheus.
func TestAProcessSendsItsMetricsByOTLP(t *testing.T) {
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
	kind := pipeline.KindJanitor
	adm := mustRun(t, kind, mustPlant(t).processes(t)[kind], slog.New(slog.DiscardHandler), nil)
	want := []string{"waybill.pending.events", "waybill.lane.backlog", "waybill.stream.size", "waybill.table.rows", "waybill.config.info", "db.client.operation.duration"}
	deadline := time.Now().Add(patience)
	for _, name := range want {
		for c.Metrics("waybill-janitor")[name] == nil {
			if time.Now().After(deadline) {
				t.Fatalf("%s has not come", name)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	scraped := httptest.NewRecorder()
	adm.handler().ServeHTTP(scraped, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	for _, text := range []string{
		`waybill_pending_events{otel_scope_name="waybill/janitor"`, `sink="archive"} 0`, `waybill_config_info{`, `setting="replay-window",value="24h0m0s"} 1`,
		`waybill_health_problem{check="work"`, `target_info{service_instance_id="test",service_name="waybill-janitor"`,
	} {
		if !strings.Contains(scraped.Body.String(), text) {
			t.Errorf("/metrics lacks %s", text)
		}
	}
}

// mustAdmin is the admin of a process that has no work.
func mustAdmin(t *testing.T) *admin {
	t.Helper()
	adm, err := newAdmin(t.Context(), Identity{ID: "test", AdminAddr: "127.0.0.1:0"}, "test", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		adm.metrics.Stop()
		_ = adm.listener.Close() // nobody served it
	})
	return adm
}

// A buffer that is nearly full is mentioned with its fill and since when, unless it is full
// whenever there is work, and does not make a process unready.
func TestNearlyFullBuffersAreMentioned(t *testing.T) {
	adm := mustAdmin(t)
	if r := adm.checks.Readiness(); r.Ready || r.Problems[0].Check != "start" {
		t.Errorf("before its work a process is %+v", r)
	}
	queue := pipeline.Buffer{Name: "the queue", Unit: "events", Used: 79, Limit: 100}
	adm.checks.Watch(func() []pipeline.Buffer {
		return []pipeline.Buffer{queue, {Name: "busy", Used: 5, Limit: 5, Busy: true}, {Name: "boundless", Used: 5}}
	})
	if r := adm.checks.Readiness(); !r.Ready || len(r.Degraded) > 0 {
		t.Errorf("with room a process is %+v", r)
	}
	queue.Used = 80
	first := adm.checks.Readiness()
	if !first.Ready || len(first.Degraded) != 1 || first.Degraded[0].Problem != "the queue: 80 of 100 events (80 %)" {
		t.Fatalf("nearly full a process is %+v", first)
	}
	if again := adm.checks.Readiness(); !again.Degraded[0].Since.Equal(first.Degraded[0].Since) {
		t.Errorf("it is so since %v and then since %v", first.Degraded[0].Since, again.Degraded[0].Since)
	}
	if text := adm.checks.Summary(); !strings.HasPrefix(text, "buffers: the queue: 80 of 100 events (80 %) (since 20") {
		t.Errorf("the heartbeat says %q", text)
	}
	queue.Used = 0
	if text := adm.checks.Summary(); text != "" {
		t.Errorf("the heartbeat says %q", text)
	}
}
