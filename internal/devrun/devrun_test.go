package devrun

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestPortsStayTheSame(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ports.json")
	load := func() *ports {
		t.Helper()
		p, err := loadPorts(path)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	first := load()
	given := map[string]int{}
	for _, name := range []string{"a", "b", "c"} {
		port, err := first.port(name)
		if err != nil {
			t.Fatal(err)
		}
		given[name] = port
	}
	if given["a"] == given["b"] || given["b"] == given["c"] || given["a"] == given["c"] {
		t.Errorf("a port is given twice: %v", given)
	}
	if err := first.save(); err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(given["b"]))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	second := load()
	for _, name := range []string{"a", "b", "c"} {
		port, err := second.port(name)
		if err != nil {
			t.Fatal(err)
		}
		if same := port == given[name]; same != (name != "b") {
			t.Errorf("%s has port %d after %d", name, port, given[name])
		}
	}
}

func TestPortsFileThatIsBroken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ports.json")
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadPorts(path); err == nil || !strings.Contains(err.Error(), "delete the file") {
		t.Error(err)
	}
}

func TestTakenAddressIsToldBeforeAnythingStarts(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	config := testConfig(t)
	config.HTTPAddr = taken.Addr().String()
	stack, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := stack.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "--ports=free") {
		t.Error(err)
	}
	if parts := stack.Parts(); len(parts) > 0 {
		t.Errorf("started %v", parts)
	}
}

func testConfig(t *testing.T) Config {
	config := DefaultConfig()
	config.Dir, config.Executable, config.Say = t.TempDir(), "/nowhere/waybill", func(s string) { t.Log(s) }
	return config
}

func TestValidate(t *testing.T) {
	if err := testConfig(t).Validate(); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(*Config){
		"directory":      func(c *Config) { c.Dir = "" },
		"executable":     func(c *Config) { c.Executable = "" },
		"Say":            func(c *Config) { c.Say = nil },
		"lanes: 0":       func(c *Config) { c.Lanes = 0 },
		"archive linger": func(c *Config) { c.ArchiveLinger = -1 },
		"keep spans: 5":  func(c *Config) { c.KeepSpans = 5 },
		"ingests: 0":     func(c *Config) { c.Ingests = 0 },
		"forwarders: 9":  func(c *Config) { c.Forwarders = 9 },
		"janitors: -1":   func(c *Config) { c.Janitors = -1 },
		"NATS servers":   func(c *Config) { c.NATSServers = 0 },
		"http-addr":      func(c *Config) { c.HTTPAddr = "8080" },
		"grpc-addr":      func(c *Config) { c.GRPCAddr = "" },
	} {
		c := testConfig(t)
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

const metricsText = `# TYPE waybill_ingest_events_accepted_total counter
waybill_ingest_events_accepted_total{otel_scope_name="x",source="a",type="t"} 3
waybill_ingest_events_accepted_total{otel_scope_name="x",source="b",type="t"} 4
# TYPE waybill_forwarder_events_total counter
waybill_forwarder_events_total{outcome="delivered",sink="archive"} 5
waybill_forwarder_events_total{outcome="refused",sink="archive"} 50
waybill_forwarder_events_total{outcome="delivered",sink="ingress"} 6
# TYPE waybill_outbox_taken_total counter
waybill_outbox_taken_total 3
# TYPE waybill_retransmit_events_total counter
waybill_retransmit_events_total 2
`

func TestReadMetrics(t *testing.T) {
	got, err := readMetrics([]byte(metricsText))
	if err != nil {
		t.Fatal(err)
	}
	for counter, want := range map[string]float64{
		acceptedMetric: 7, takenMetric: 3, retransmitsMetric: 2, deliveredMetric + " archive": 5, deliveredMetric + " ingress": 6,
	} {
		if got[counter] != want {
			t.Errorf("%s is %v, want %v", counter, got[counter], want)
		}
	}
	if _, err := readMetrics([]byte("{")); err == nil {
		t.Error("what is no metrics passes")
	}
}

func TestCountersGoOnAfterARestart(t *testing.T) {
	c := newCounters()
	for _, step := range []struct {
		process string
		value   float64
		want    float64
	}{
		{"ingest-1 100", 5, 5},
		{"ingest-1 100", 7, 7},
		{"ingest-2 101", 10, 17},
		{"ingest-1 102", 9, 26},
		{"ingest-1 102", 9, 26},
	} {
		if c.observe(step.process, "n", step.value); c.sum["n"] != step.want {
			t.Errorf("%+v: %v", step, c.sum["n"])
		}
	}
}

func TestSayWriter(t *testing.T) {
	var said []string
	n, err := sayWriter(func(s string) { said = append(said, s) }).Write([]byte("building\n"))
	if n != 9 || err != nil || len(said) != 1 || said[0] != "building" {
		t.Errorf("%d, %v, %q", n, err, said)
	}
}
