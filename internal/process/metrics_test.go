package process

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/embedded"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"

	"github.com/waybillhq/waybill/internal/devstack"
	"github.com/waybillhq/waybill/internal/metricsdoc"
	"github.com/waybillhq/waybill/internal/pgtest"
	"github.com/waybillhq/waybill/pipeline"
)

// patience bounds a wait for what must come about; no test waits for it to pass.
const patience = time.Minute

func TestMain(m *testing.M) {
	pgtest.Main(m, pgtest.Options{Template: func(ctx context.Context, url string) error {
		return pipeline.Migrate(ctx, url, pipeline.Spec{Lanes: 2, Sinks: []string{"ingress", "archive"}, Grace: 3 * time.Second, DedupeWindow: time.Minute})
	}})
}

// recorder notes the instruments that are made of it.
type recorder struct {
	embedded.MeterProvider

	mu   sync.Mutex // guards made
	made map[string]metricsdoc.Metric
}

// recordedMeter is a Meter of a recorder.
type recordedMeter struct {
	metric.Meter
	recorder *recorder
}

func newRecorder() *recorder { return &recorder{made: map[string]metricsdoc.Metric{}} }

// Meter implements metric.MeterProvider.
func (r *recorder) Meter(name string, _ ...metric.MeterOption) metric.Meter {
	return &recordedMeter{sdkmetric.NewMeterProvider().Meter(name), r}
}

// note takes an instrument down, with the name that the Prometheus exporter gives it.
func (m *recordedMeter) note(kind, name, unit, description string, record func(metric.Meter) error) error {
	registry := prometheus.NewRegistry()
	exporter, err := otelprometheus.New(otelprometheus.WithRegisterer(registry), otelprometheus.WithoutScopeInfo(), otelprometheus.WithoutTargetInfo())
	if err != nil {
		return err
	}
	if err := record(sdkmetric.NewMeterProvider(sdkmetric.WithReader(exporter)).Meter("")); err != nil {
		return err
	}
	families, err := registry.Gather()
	if err != nil || len(families) != 1 {
		return fmt.Errorf("%s: %d metrics for Prometheus, want 1: %w", name, len(families), err)
	}
	m.recorder.mu.Lock()
	defer m.recorder.mu.Unlock()
	m.recorder.made[name] = metricsdoc.Metric{Name: name, Prometheus: families[0].GetName(), Type: kind, Unit: unit, Meaning: description}
	return nil
}

func (m *recordedMeter) Int64Counter(name string, options ...metric.Int64CounterOption) (metric.Int64Counter, error) {
	c := metric.NewInt64CounterConfig(options...)
	err := m.note("counter", name, c.Unit(), c.Description(), func(to metric.Meter) error {
		i, err := to.Int64Counter(name, options...)
		i.Add(context.Background(), 1)
		return err
	})
	if err != nil {
		return nil, err
	}
	return m.Meter.Int64Counter(name, options...)
}

func (m *recordedMeter) Int64UpDownCounter(name string, options ...metric.Int64UpDownCounterOption) (metric.Int64UpDownCounter, error) {
	c := metric.NewInt64UpDownCounterConfig(options...)
	err := m.note("updowncounter", name, c.Unit(), c.Description(), func(to metric.Meter) error {
		i, err := to.Int64UpDownCounter(name, options...)
		i.Add(context.Background(), 1)
		return err
	})
	if err != nil {
		return nil, err
	}
	return m.Meter.Int64UpDownCounter(name, options...)
}

func (m *recordedMeter) Int64Histogram(name string, options ...metric.Int64HistogramOption) (metric.Int64Histogram, error) {
	c := metric.NewInt64HistogramConfig(options...)
	err := m.note("histogram", name, c.Unit(), c.Description(), func(to metric.Meter) error {
		i, err := to.Int64Histogram(name, options...)
		i.Record(context.Background(), 1)
		return err
	})
	if err != nil {
		return nil, err
	}
	return m.Meter.Int64Histogram(name, options...)
}

func (m *recordedMeter) Float64Histogram(name string, options ...metric.Float64HistogramOption) (metric.Float64Histogram, error) {
	c := metric.NewFloat64HistogramConfig(options...)
	err := m.note("histogram", name, c.Unit(), c.Description(), func(to metric.Meter) error {
		i, err := to.Float64Histogram(name, options...)
		i.Record(context.Background(), 1)
		return err
	})
	if err != nil {
		return nil, err
	}
	return m.Meter.Float64Histogram(name, options...)
}

func (m *recordedMeter) Int64ObservableCounter(name string, options ...metric.Int64ObservableCounterOption) (metric.Int64ObservableCounter, error) {
	c := metric.NewInt64ObservableCounterConfig(options...)
	one := metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error { o.Observe(1); return nil })
	err := m.note("counter", name, c.Unit(), c.Description(), func(to metric.Meter) error {
		_, err := to.Int64ObservableCounter(name, append(slices.Clone(options), one)...)
		return err
	})
	if err != nil {
		return nil, err
	}
	return m.Meter.Int64ObservableCounter(name, options...)
}

func (m *recordedMeter) Int64ObservableUpDownCounter(name string, options ...metric.Int64ObservableUpDownCounterOption) (metric.Int64ObservableUpDownCounter, error) {
	c := metric.NewInt64ObservableUpDownCounterConfig(options...)
	one := metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error { o.Observe(1); return nil })
	err := m.note("updowncounter", name, c.Unit(), c.Description(), func(to metric.Meter) error {
		_, err := to.Int64ObservableUpDownCounter(name, append(slices.Clone(options), one)...)
		return err
	})
	if err != nil {
		return nil, err
	}
	return m.Meter.Int64ObservableUpDownCounter(name, options...)
}

func (m *recordedMeter) Int64ObservableGauge(name string, options ...metric.Int64ObservableGaugeOption) (metric.Int64ObservableGauge, error) {
	c := metric.NewInt64ObservableGaugeConfig(options...)
	one := metric.WithInt64Callback(func(_ context.Context, o metric.Int64Observer) error { o.Observe(1); return nil })
	err := m.note("gauge", name, c.Unit(), c.Description(), func(to metric.Meter) error {
		_, err := to.Int64ObservableGauge(name, append(slices.Clone(options), one)...)
		return err
	})
	if err != nil {
		return nil, err
	}
	return m.Meter.Int64ObservableGauge(name, options...)
}

func (m *recordedMeter) Float64ObservableGauge(name string, options ...metric.Float64ObservableGaugeOption) (metric.Float64ObservableGauge, error) {
	c := metric.NewFloat64ObservableGaugeConfig(options...)
	one := metric.WithFloat64Callback(func(_ context.Context, o metric.Float64Observer) error { o.Observe(1); return nil })
	err := m.note("gauge", name, c.Unit(), c.Description(), func(to metric.Meter) error {
		_, err := to.Float64ObservableGauge(name, append(slices.Clone(options), one)...)
		return err
	})
	if err != nil {
		return nil, err
	}
	return m.Meter.Float64ObservableGauge(name, options...)
}

// Those that no process makes; one that begins to must be recorded above.
func (m *recordedMeter) Float64Counter(name string, _ ...metric.Float64CounterOption) (metric.Float64Counter, error) {
	return nil, fmt.Errorf("%s: a kind that the test does not record", name)
}

func (m *recordedMeter) Float64UpDownCounter(name string, _ ...metric.Float64UpDownCounterOption) (metric.Float64UpDownCounter, error) {
	return nil, fmt.Errorf("%s: a kind that the test does not record", name)
}

func (m *recordedMeter) Int64Gauge(name string, _ ...metric.Int64GaugeOption) (metric.Int64Gauge, error) {
	return nil, fmt.Errorf("%s: a kind that the test does not record", name)
}

func (m *recordedMeter) Float64Gauge(name string, _ ...metric.Float64GaugeOption) (metric.Float64Gauge, error) {
	return nil, fmt.Errorf("%s: a kind that the test does not record", name)
}

func (m *recordedMeter) Float64ObservableCounter(name string, _ ...metric.Float64ObservableCounterOption) (metric.Float64ObservableCounter, error) {
	return nil, fmt.Errorf("%s: a kind that the test does not record", name)
}

func (m *recordedMeter) Float64ObservableUpDownCounter(name string, _ ...metric.Float64ObservableUpDownCounterOption) (metric.Float64ObservableUpDownCounter, error) {
	return nil, fmt.Errorf("%s: a kind that the test does not record", name)
}

// plant is the servers that the processes of a test need.
type plant struct{ database, nats string }

func mustPlant(t *testing.T) plant {
	t.Helper()
	n, err := devstack.StartNATS(devstack.DefaultNATSOptions(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Stop() })
	return plant{pgtest.New(t), n.URL()}
}

// runner is a process.
type runner interface {
	run(ctx context.Context, adm *admin, log *slog.Logger) error
}

// processes are one of each kind, with sinks that are away.
func (p plant) processes(t *testing.T) map[string]runner {
	t.Helper()
	ingest, forwarder, janitor := &Ingest{}, &Forwarder{}, &Janitor{}
	common := []string{"--admin-addr=127.0.0.1:0", "--nats-url=" + p.nats, "--lanes=2"}
	mustParse(t, ingest, append(common, "--database-url="+p.database, "--http-addr=127.0.0.1:0", "--grpc-addr=127.0.0.1:0")...)
	mustParse(t, janitor, append(common, "--database-url="+p.database)...)
	mustParse(t, forwarder, append(common, "--ingress-endpoint=127.0.0.1:1", "--s3-bucket=b", "--s3-endpoint=http://127.0.0.1:1",
		"--s3-access-key=a", "--s3-secret-key=s")...)
	return map[string]runner{pipeline.KindJanitor: janitor, pipeline.KindIngest: ingest, pipeline.KindForwarder: forwarder}
}

// mustRun runs a process until the test ends, and returns once it has begun its work. meters may be nil.
func mustRun(t *testing.T, kind string, process runner, log *slog.Logger, meters metric.MeterProvider) *admin {
	t.Helper()
	adm, err := newAdmin(t.Context(), Identity{ID: "test", AdminAddr: "127.0.0.1:0"}, kind, log)
	if err != nil {
		t.Fatal(err)
	}
	if meters != nil {
		adm.meters = meters
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- process.run(ctx, adm, log) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ran:
			if err != nil && ctx.Err() == nil {
				t.Errorf("%s: %v", kind, err)
			}
		case <-time.After(patience):
			t.Errorf("%s does not stop", kind)
		}
		adm.metrics.Stop()
		_ = adm.listener.Close() // nobody served it
	})
	deadline := time.Now().Add(patience)
	for {
		if r := adm.checks.Readiness(); len(r.Problems) == 0 || r.Problems[0].Check != "start" {
			return adm
		}
		select {
		case err := <-ran:
			t.Fatalf("%s ended: %v", kind, err)
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not begin", kind)
		}
	}
}

// Every instrument that a process makes stands in docs/metrics.md with its name, unit and
// description, and the document has no other.
func TestMetricsAreDocumented(t *testing.T) {
	documented, err := metricsdoc.Read(filepath.Join("..", "..", "docs", "metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	for kind, process := range mustPlant(t).processes(t) {
		t.Run(kind, func(t *testing.T) {
			r := newRecorder()
			mustRun(t, kind, process, slog.New(slog.DiscardHandler), r)
			r.mu.Lock()
			made := maps.Clone(r.made)
			r.mu.Unlock()
			if len(made) < 10 {
				t.Fatalf("only %d instruments were made", len(made))
			}
			for _, d := range documented {
				if d.Process != kind && d.Process != metricsdoc.EveryProcess {
					continue
				}
				is, ok := made[d.Name]
				if !ok {
					t.Errorf("%s is documented and does not exist", d.Name)
					continue
				}
				delete(made, d.Name)
				d.Process, d.Attributes = "", nil
				if !equal(d, is) {
					t.Errorf("documented as\n%s\nit is\n%s", row(d), row(is))
				}
			}
			for _, name := range slices.Sorted(maps.Keys(made)) {
				t.Errorf("not documented for %s:\n%s", kind, row(made[name]))
			}
		})
	}
}

func equal(a, b metricsdoc.Metric) bool {
	return a.Name == b.Name && a.Prometheus == b.Prometheus && a.Type == b.Type && a.Unit == b.Unit && a.Meaning == strings.TrimSuffix(b.Meaning, ".")
}

// row is the metric's row in docs/metrics.md, without attributes.
func row(m metricsdoc.Metric) string {
	return fmt.Sprintf("| `%s` | `%s` | %s | `%s` | | %s |", m.Name, m.Prometheus, m.Type, m.Unit, strings.TrimSuffix(m.Meaning, "."))
}
