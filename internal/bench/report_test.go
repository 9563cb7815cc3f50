package bench

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"
)

func sampleReport() *Report {
	r := newReport(Scenario{Name: "sample"}, Config{Command: []string{"waybill", "bench", "sample", "--out", "a b"}})
	now := time.Now()
	st := &Stage{
		System: "one", Load: standard("calls <of> 100"), Seconds: 2, Offered: 300, Accepted: 300, AcceptRate: 150,
		DeliverRate: map[string]float64{ingressSink: 149, archiveSink: 148}, BacklogGrowth: map[string]int64{ingressSink: 1},
		Accept: Quantiles{Count: 3, P50: 1.5, P99: 3, Max: 4}, CPU: map[string]float64{self: 2, "ingest-1": 5.25}, WAL: 512,
		Memory: map[string]int64{"ingest-1": 100 << 20}, Failures: map[string]int64{"<no>": 1},
	}
	for i := range int64(3) {
		st.Samples = append(st.Samples, Sample{
			At: now.Add(time.Duration(i) * time.Second), Stage: "window", Offered: 100 * i, Accepted: 100 * i,
			Delivered: map[string]int64{ingressSink: 90 * i}, Pending: map[string]int64{ingressSink: 10 * i, archiveSink: i},
			Queued: map[string]int64{ingressSink: i}, OldestAge: map[string]float64{ingressSink: 0.5},
			CPU: map[string]time.Duration{"ingest-1": time.Duration(i) * time.Second},
		})
	}
	st.acceptCurve = newHistogram()
	recordInto(st.acceptCurve, time.Millisecond)
	r.Stages = append(r.Stages, st)
	r.Figures = append(r.Figures, Figure{"COPY of rows", 123456, "rows/s", Absolute})
	r.Correctness = append(r.Correctness, Verdict{System: "one", Sink: ingressSink, Accepted: 300, Delivered: 300})
	lines := Series{Title: "Lines", X: "pass", Y: "rows/s", Kind: Shape}
	for x := range 3 {
		lines.add("up", float64(x), float64(x))
		lines.add("down", float64(x), float64(3-x))
	}
	r.Series = append(r.Series, lines)
	r.finish(nil)
	return r
}

func mustWrite(t *testing.T, r *Report) func(name string) []byte {
	t.Helper()
	dir := t.TempDir()
	if err := r.Write(dir); err != nil {
		t.Fatal(err)
	}
	return func(name string) []byte {
		t.Helper()
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return content
	}
}

func TestReportFilesParseBack(t *testing.T) {
	r := sampleReport()
	file := mustWrite(t, r)
	var back Report
	if err := json.Unmarshal(file("summary.json"), &back); err != nil {
		t.Fatal(err)
	}
	if !back.OK || len(back.Stages) != 1 || back.Stages[0].CPU["ingest-1"] != 5.25 || back.Correctness[0].Accepted != 300 || len(back.Series) != 1 || back.Series[0].Lines[1].Y[2] != 1 || back.Command != "waybill bench sample --out 'a b'" {
		t.Errorf("summary.json: %+v", back)
	}
	series, err := csv.NewReader(bytes.NewReader(file("timeseries.csv"))).ReadAll()
	if err != nil || len(series) != 4 {
		t.Fatalf("timeseries.csv has %d rows; want 4: %v", len(series), err)
	}
	column := func(name string) string {
		for i, title := range series[0] {
			if title == name {
				return series[3][i]
			}
		}
		return "none"
	}
	if column("accepted") != "200" || column("ingress_pending") != "20" || column("archive_pending") != "2" || column("archive_delivered") != "" || column("ingest-1_cpu_s") != "2.000" {
		t.Errorf("timeseries.csv: %q", series)
	}
	stats, err := csv.NewReader(bytes.NewReader(file("stats.csv"))).ReadAll()
	if err != nil || len(stats) < 20 {
		t.Errorf("stats.csv has %d rows, %v", len(stats), err)
	}
	for _, row := range stats[1:] {
		if _, err := strconv.ParseFloat(row[3], 64); err != nil || (row[5] != string(Shape) && row[5] != string(Absolute)) {
			t.Errorf("stats.csv: %q, %v", row, err)
		}
	}
}

// benchLine is what benchstat reads: a name, a count, and values with their units.
var benchLine = regexp.MustCompile(`^Benchmark[A-Z]\S+ \d+( \d+(\.\d+)? \S+)+$`)

func TestBenchLines(t *testing.T) {
	lines := strings.Split(strings.TrimSpace(string(mustWrite(t, sampleReport())("bench.txt"))), "\n")
	if len(lines) != 6 {
		t.Fatalf("%d lines; want 6: %q", len(lines), lines)
	}
	for _, line := range lines[4:] {
		if !benchLine.MatchString(line) {
			t.Errorf("%q is no benchmark line", line)
		}
	}
}

// TestPageIsSelfContained: it parses, begins with correctness, has charts that say what they
// are worth, and loads nothing.
func TestPageIsSelfContained(t *testing.T) {
	page := string(mustWrite(t, sampleReport())("report.html"))
	if _, err := html.Parse(strings.NewReader(page)); err != nil {
		t.Fatal(err)
	}
	if m := regexp.MustCompile(`(?i)(src|href)=|url\(|@import|https?://`).FindString(page); m != "" {
		t.Errorf("the page has %q", m)
	}
	before := -1
	for _, part := range []string{"Correctness", "Figures", "calls &lt;of&gt; 100", "Machine and command"} {
		at := strings.Index(page, part)
		if at <= before {
			t.Errorf("%q is at %d; want it behind %d", part, at, before)
		}
		before = at
	}
	if charts := strings.Count(page, "<svg "); charts != 7 || strings.Count(page, "<figcaption>") != charts {
		t.Errorf("%d charts, %d captions; want 7 of each", charts, strings.Count(page, "<figcaption>"))
	}
	if strings.Contains(page, "<no>") {
		t.Error("an error's text is not escaped")
	}
}

// TestChartLeavesOutWhatCannotBeSeen: a line of one point, and a chart of such lines.
func TestChartLeavesOutWhatCannotBeSeen(t *testing.T) {
	var c chart
	c.add("point", 0, 3)
	if c.draw() {
		t.Error("a chart of one point is drawn")
	}
	c.add("point", 0, 3)
	for x := range 2 {
		c.add("line", float64(x), 1)
	}
	if !c.draw() || strings.Contains(string(c.SVG), "point<") || strings.Count(string(c.SVG), "line</") != 2 {
		t.Errorf("want the line alone, with its name and its legend: %s", c.SVG)
	}
}

func TestCommandHasNoPassword(t *testing.T) {
	got := quoteCommand([]string{"--database-url=postgres://u:secret@h/d?x=1", "--nats-url", "nats://u:secret@h", "--out", "a=b", ""})
	if want := "'--database-url=postgres://u:xxxxx@h/d?x=1' --nats-url nats://u:xxxxx@h --out a=b ''"; got != want {
		t.Errorf("%s; want %s", got, want)
	}
}

func TestReportIsNotOK(t *testing.T) {
	for name, change := range map[string]func(*Report) error{
		"error":  func(*Report) error { return errors.New("broken") },
		"lost":   func(r *Report) error { r.Correctness[0].Lost = 1; return nil },
		"double": func(r *Report) error { r.Correctness[0].Doubled = 1; return nil },
		"fork":   func(r *Report) error { r.Correctness[0].Heads = &HeadsVerdict{Forks: 1}; return nil },
		"gap":    func(r *Report) error { r.Correctness[0].Heads = &HeadsVerdict{Gaps: 1}; return nil },
		"short":  func(r *Report) error { r.Targets = []TargetResult{{Name: "t"}}; return nil },
	} {
		r := sampleReport()
		if r.finish(change(r)); r.OK {
			t.Errorf("%s: the report is OK", name)
		}
	}
}

func TestTargetLines(t *testing.T) {
	least, most := Target{Name: "a", Limit: 0.5}, Target{Name: "b", Limit: 20, Unit: "ms", Most: true}
	for _, test := range []struct {
		target Target
		value  float64
		err    error
		want   string
	}{
		{least, 0.6125, nil, "a 0.6125 want >=0.5000 ok"},
		{least, 0.5, nil, "a 0.5000 want >=0.5000 ok"},
		{least, 0.4, nil, "a 0.4000 want >=0.5000 short"},
		{most, 19, nil, "b 19.00ms want <=20.00ms ok"},
		{most, 21, nil, "b 21.00ms want <=20.00ms short"},
		{most, 0, errors.New("no"), "b 0ms want <=20.00ms short (no)"},
	} {
		if got := test.target.judge(test.value, test.err).String(); got != test.want {
			t.Errorf("%q; want %q", got, test.want)
		}
	}
}

func TestFormatValue(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 123456.7: "123457", 12.345: "12.35", 0.012345: "0.01235", 1e-12: "0.000000000"} {
		if got := formatValue(v); got != want {
			t.Errorf("%v is %s; want %s", v, got, want)
		}
	}
}
