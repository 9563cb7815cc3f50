package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/waybillhq/waybill/internal/bench"
	"github.com/waybillhq/waybill/internal/devstack"
)

// TestBenchQuick runs the whole suite's machinery on a real system, for a moment each.
func TestBenchQuick(t *testing.T) {
	dir := t.TempDir()
	out, status := waybill(t, dir, nil, "bench", "quick", "--out", "report", "--for", "500ms", "--warm-up", "100ms", "--keys", "20", "--bytes", "64", "--keep-logs", "--profile")
	if status != 0 {
		t.Fatalf("status %d", status)
	}
	report := func(name string) []byte {
		t.Helper()
		content, err := os.ReadFile(filepath.Join(dir, "report", name))
		if err != nil {
			t.Fatal(err)
		}
		return content
	}
	summary, _ := mustReadSummary(t, dir)
	if !summary.OK || len(summary.Correctness) != 2 || len(summary.Stages) != 5 {
		t.Fatalf("OK %v, %d verdicts, %d stages", summary.OK, len(summary.Correctness), len(summary.Stages))
	}
	for _, v := range summary.Correctness {
		if v.Unchecked != "" || v.Accepted == 0 || v.Accepted != v.Delivered || !strings.Contains(out, v.Sink+": ok: accepted ") {
			t.Errorf("%v", v)
		}
	}
	for _, st := range summary.Stages {
		for process, least := range map[string]float64{"ingest-1": 0, "forwarder-1": 0, "janitor-1": 0, "postgres": 0, "nats-server": 0} {
			if st.CPU[process] <= least || st.Memory[process] < 1<<20 {
				t.Errorf("%s: %s used %v µs an event and %d bytes", st.Load.Name, process, st.CPU[process], st.Memory[process])
			}
		}
		if st.Accepted == 0 || st.Accept.Count == 0 || st.Ingress.Count != st.Accepted || st.WAL <= 0 || st.Load.Bytes != 64 {
			t.Errorf("%s: %+v", st.Load.Name, st)
		}
	}
	if _, err := csv.NewReader(bytes.NewReader(report("timeseries.csv"))).ReadAll(); err != nil {
		t.Error(err)
	}
	if page := report("report.html"); !bytes.Contains(page, []byte("<svg ")) {
		t.Error("the page has no chart")
	}
	if lines := strings.Count(string(report("bench.txt")), "\nBenchmark"); lines != 5 {
		t.Errorf("%d benchmark lines; want 5", lines)
	}
	for _, path := range []string{"logs/quick/ingest-1.log", "profiles/quick_8_streams_ingest-1.pprof"} {
		if info, err := os.Stat(filepath.Join(dir, "report", path)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// mustBench runs a scenario and returns its summary, its output and its status, 0 or 1.
func mustBench(t *testing.T, args ...string) (summary bench.Report, file func(name string) string, status int) {
	t.Helper()
	dir := t.TempDir()
	_, status = waybill(t, dir, nil, append([]string{"bench", "--out", "report"}, args...)...)
	file = func(name string) string {
		t.Helper()
		content, err := os.ReadFile(filepath.Join(dir, "report", name))
		if err != nil {
			t.Fatal(err)
		}
		return string(content)
	}
	if err := json.Unmarshal([]byte(file("summary.json")), &summary); err != nil {
		t.Fatal(err)
	}
	if summary.Error != "" {
		t.Fatalf("status %d: %s", status, summary.Error)
	}
	return summary, file, status
}

// TestBenchHeads: each race is judged, before anything else in the report, and measured.
func TestBenchHeads(t *testing.T) {
	summary, file, status := mustBench(t, "heads", "--for", "200ms", "--warm-up", "0s", "--closed", "4", "--keys", "50", "--bytes", "64", "--runs", "2")
	if status != 0 || !summary.OK || len(summary.Correctness) != 12 || len(summary.Tables) != 1 || len(summary.Tables[0].Rows) != 6 {
		t.Fatalf("status %d: %+v", status, summary)
	}
	for _, v := range summary.Correctness {
		if v.Accepted == 0 || v.Pending != v.Accepted || v.Heads == nil || v.Heads.Keys == 0 {
			t.Errorf("%v", v)
		}
	}
	for _, row := range summary.Tables[0].Rows {
		v := row.Values
		if v["events, lowest"] <= 0 || v["events"] < v["events, lowest"] || v["events, highest"] < v["events"] || v["p99"] <= 0 {
			t.Errorf("%+v", row)
		}
	}
	if page := file("report.html"); !strings.Contains(page, "seqnums of 50 keys: forks 0, gaps 0") {
		t.Error("the page does not say that there are no forks and gaps")
	}
	if summary.Versions["postgres"] == "" {
		t.Errorf("versions: %v", summary.Versions)
	}
}

// TestBenchStatements: each statement is measured with stale and with fresh statistics.
func TestBenchStatements(t *testing.T) {
	summary, file, status := mustBench(t, "statements", "--pending", "1000", "--for", "1ms", "--runs", "2")
	if status != 0 || !summary.OK || len(summary.Tables) != 1 || len(summary.Missing) == 0 {
		t.Fatalf("status %d: %+v", status, summary)
	}
	names := map[string]bool{}
	for _, row := range summary.Tables[0].Rows {
		if names[row.Name] || row.Values["p50"] <= 0 || row.Values["p99"] < row.Values["p50"] || row.Remark == "" {
			t.Errorf("%+v", row)
		}
		names[row.Name] = true
	}
	for _, want := range []string{"survey (all batches), 1000 rows, stale", "append_one_key (1 event), 1000 rows, fresh"} {
		if !names[want] || !strings.Contains(file("report.html"), want) || !strings.Contains(file("statements.csv"), want) {
			t.Errorf("the report lacks %q", want)
		}
	}
}

// mustReadSummary reads the summary of the report in a directory, and its text.
func mustReadSummary(t *testing.T, dir string) (report bench.Report, text []byte) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "report", "summary.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &report); err != nil {
		t.Fatal(err)
	}
	return report, text
}

// mustBenchOK runs a scenario in a directory and returns the summary of its report, which must be OK.
func mustBenchOK(t *testing.T, dir string, args ...string) bench.Report {
	t.Helper()
	_, status := waybill(t, dir, nil, append([]string{"bench", "--out", "report"}, args...)...)
	if status != 0 {
		t.Fatalf("status %d", status)
	}
	report, _ := mustReadSummary(t, dir)
	for _, v := range report.Correctness {
		if v.Unchecked != "" || v.Accepted == 0 || v.Accepted != v.Delivered {
			t.Errorf("%v", v)
		}
	}
	return report
}

// figureOf is the value of a figure, which must be there.
func figureOf(t *testing.T, report bench.Report, name string) float64 {
	t.Helper()
	for _, f := range report.Figures {
		if f.Name == name {
			return f.Value
		}
	}
	t.Errorf("there is no figure %q in %v", name, report.Figures)
	return 0
}

// TestBenchReplay reads back what a real system keeps, from both places.
func TestBenchReplay(t *testing.T) {
	report := mustBenchOK(t, t.TempDir(), "replay", "--for", "300ms", "--runs", "2")
	if len(report.Correctness) != 5 || len(report.Series) != 1 || len(report.Series[0].Lines) != 3 {
		t.Errorf("%d verdicts, series %+v; want those of three readers and two sinks", len(report.Correctness), report.Series)
	}
	for _, reader := range []string{"queue replay", "archive replay, 1 at once", "archive replay, 4 at once"} {
		if rate := figureOf(t, report, reader); rate < 100 {
			t.Errorf("%s: %v events/s", reader, rate)
		}
	}
}

// TestBenchTraceFile replays a file on a real system.
func TestBenchTraceFile(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "t.csv"), []byte("time,key,size\n0,a,10\n0,b,0\n1,a,5000\n4,b,10\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	report := mustBenchOK(t, dir, "trace-file", "--trace", "t.csv", "--speed", "4")
	if len(report.Stages) != 1 || report.Stages[0].Accepted != 4 || report.Stages[0].Seconds < 1 || report.Stages[0].Load.Keys != 2 {
		t.Fatalf("%+v", report.Stages)
	}
	if peak := figureOf(t, report, "most arrivals within a second"); peak != 3 {
		t.Errorf("%v arrivals within a second; want 3", peak)
	}
}

// ingestAddrs finds an ingest's addresses in what `waybill dev` prints.
var ingestAddrs = regexp.MustCompile(`http (\S+), grpc (\S+), admin`)

// TestBenchGiven measures the system of another process, which delivers to the benchmark.
func TestBenchGiven(t *testing.T) {
	port, err := devstack.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	dir, endpoint := t.TempDir(), net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	if err := os.Chmod(dir, 0o755); err != nil { // Postgres may be another user
		t.Fatal(err)
	}
	dev := start(t, dir, nil, "dev", "--ports", "free", "--ingress-endpoint", endpoint)
	var addrs []string
	for deadline := time.Now().Add(programLimit); addrs == nil; time.Sleep(50 * time.Millisecond) {
		if addrs = ingestAddrs.FindStringSubmatch(dev.text()); time.Now().After(deadline) {
			t.Fatal("waybill dev is not ready")
		}
	}
	environment, err := os.ReadFile(filepath.Join(dir, ".waybill", "env"))
	if err != nil {
		t.Fatal(err)
	}
	env := map[string]string{}
	for line := range strings.Lines(string(environment)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		env[name] = value
	}
	out, status := waybill(t, dir, nil, "bench", "quick", "--out", "report", "--for", "300ms", "--warm-up", "0s",
		"--http-addr", "http://"+addrs[1], "--grpc-addr", addrs[2], "--endpoint-addr", endpoint,
		"--database-url", env["WAYBILL_DATABASE_URL"], "--nats-url", env["WAYBILL_NATS_URL"])
	if status != 0 {
		t.Fatalf("status %d", status)
	}
	for _, want := range []string{"not measured: CPU time", "quick ingress: ok: accepted ", "quick archive: not checked: "} {
		if !strings.Contains(out, want) {
			t.Errorf("the output lacks %q", want)
		}
	}
	report, summary := mustReadSummary(t, dir)
	for _, st := range report.Stages {
		_, others := st.CPU["ingest-1"]
		_, archived := st.DeliverRate["archive"]
		if st.Accepted == 0 || st.Ingress.Count != st.Accepted || st.WAL <= 0 || st.Memory != nil || others || archived {
			t.Errorf("%s: %+v", st.Load.Name, st)
		}
	}
	if password, _, _ := strings.Cut(strings.SplitAfterN(env["WAYBILL_DATABASE_URL"], ":", 3)[2], "@"); strings.Contains(string(summary), password) {
		t.Error("the report holds the database's password")
	}
}

// TestBenchHelpNamesEveryScenario: with its line.
func TestBenchHelpNamesEveryScenario(t *testing.T) {
	out, status := waybill(t, t.TempDir(), nil, "bench", "--help")
	if status != 0 {
		t.Fatalf("status %d", status)
	}
	text := strings.Join(strings.Fields(out), " ")
	for _, s := range bench.Scenarios() {
		if !strings.Contains(text, s.Name+": "+s.Help) {
			t.Errorf("the help lacks %s: %s", s.Name, s.Help)
		}
	}
}

func TestBenchRefusesWhatCannotBe(t *testing.T) {
	for name, args := range map[string][]string{
		"want one of":           {"nothing"},
		"give one of":           {"quick", "--rate", "10", "--closed", "1"},
		"give both":             {"quick", "--http-addr", "http://127.0.0.1:1"},
		"same machine":          {"targets", "--http-addr", "http://127.0.0.1:1", "--grpc-addr", "127.0.0.1:1"},
		"want at least":         {"quick", "--for=-1s"},
		"only trace-file":       {"quick", "--speed", "2"},
		"as a whole":            {"quick", "--part", "held"},
		"begin with rows":       {"quick", "--pending", "5"},
		"in turn":               {"quick", "--runs", "2"},
		"what fits an event":    {"quick", "--bytes", "99999999"},
		"--events: 0":           {"quick", "--events", "0"},
		"--rate: 0":             {"quick", "--rate", "0"},
		"--warm-up: trace-file": {"trace-file", "--warm-up", "1s"},
		"autovacuum":            {"store", "--part", "nosuch"},
		"those of its file":     {"trace-file", "--rate", "10"},
		"twice as fast":         {"trace-file", "--speed", "0"},
		"only s3 measures":      {"quick", "--s3-endpoint", "http://127.0.0.1:1"},
		"want dollars":          {"s3", "--s3-put-price=-1"},
		"numbers of writers":    {"s3", "--keys", "3"},
		"S3 server alone":       {"s3", "--http-addr", "http://127.0.0.1:1", "--grpc-addr", "127.0.0.1:1"},
		"nowhere.csv":           {"trace-file", "--trace", "nowhere.csv"},
		"a Postgres of its own": {"heads", "--http-addr", "http://127.0.0.1:1", "--grpc-addr", "127.0.0.1:1"},
	} {
		want := 80
		if name == "nowhere.csv" { // the flags are right
			want = 1
		}
		if out, status := waybill(t, t.TempDir(), nil, append([]string{"bench"}, args...)...); status != want || !strings.Contains(out, name) {
			t.Errorf("%v: status %d: %s", args, status, out)
		}
	}
}

// TestBenchTracing measures for a moment what is traced, and sees that it is.
func TestBenchTracing(t *testing.T) {
	summary, _, status := mustBench(t, "tracing", "--runs=1", "--for=300ms", "--warm-up=0s", "--rate=500", "--events=5")
	if status != 0 || !summary.OK || len(summary.Stages) != 8 || len(summary.Correctness) != 8 {
		t.Fatalf("status %d, OK %v, %d stages, %d verdicts", status, summary.OK, len(summary.Stages), len(summary.Correctness))
	}
	figures := map[string]float64{}
	for _, f := range summary.Figures {
		figures[f.Name] = f.Value
	}
	const load = "2000/s in calls of 10, " // whatever --rate makes of it
	// A batch of several events has one span more.
	if all := figures[load+"100 % traced: spans received"]; all < 9 || all > 10 {
		t.Errorf("%v spans came of each event, want 9, and those of batches", all)
	}
	if none, known := figures[load+"0 % traced: spans received"]; !known || none != 0 {
		t.Errorf("%v spans came where nothing is sampled, known: %v", none, known)
	}
	for _, name := range []string{"tracing off: CPU of ingest-1", "1 % traced: CPU of forwarder-1", "100 % traced: CPU of janitor-1", "100 % traced: accepted", "0 % traced: CPU by that of tracing off"} {
		if figures[load+name] <= 0 {
			t.Errorf("%s is %v", name, figures[load+name])
		}
	}
}

// TestBenchOutbox: it is measured when the queue gives an event out, and when the endpoint has it.
func TestBenchOutbox(t *testing.T) {
	summary, _, _ := mustBench(t, "outbox", "--part", "latency", "--runs", "2", "--for", "600ms", "--warm-up", "100ms") // as the machine is, the target may be short
	for _, load := range []string{"25/s", "1000/s", "1000/s, one key"} {
		for _, p := range []string{"p50", "p95", "p99"} {
			queue := figureOf(t, summary, "outbox, "+load+": commit → a consumer of the queue, as a forwarder, has it, "+p)
			endpoint := figureOf(t, summary, "outbox, "+load+": commit → the endpoint has it, "+p)
			if queue <= 0 || endpoint <= 0 {
				t.Errorf("%s, %s: %v ms until the queue gives it out, %v until the endpoint has it", load, p, queue, endpoint)
			}
		}
	}
	for _, v := range summary.Correctness {
		if v.Accepted == 0 || v.Lost+v.Doubled > 0 || v.Delivered != v.Accepted {
			t.Errorf("%v", v)
		}
	}
	if len(summary.Correctness) != 2 || len(summary.Targets) != 2 {
		t.Errorf("%d verdicts, want those of two sinks; %d targets, want those of 1,000/s", len(summary.Correctness), len(summary.Targets))
	}
}
