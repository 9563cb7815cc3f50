package browser

import (
	"context"
	"encoding/json"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// benchLimit is far above what a run of a few seconds takes, on a loaded machine too.
const benchLimit = 5 * time.Minute

// made is the directory of a report that report has had made; empty: none.
var made string

// report is the directory of a report: of WAYBILL_REPORT, or of a short run of WAYBILL_BIN.
var report = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv("WAYBILL_REPORT"); dir != "" {
		return dir, nil
	}
	dir, err := os.MkdirTemp("", "waybill-report-")
	if err != nil {
		return "", err
	}
	made = dir
	ctx, cancel := context.WithTimeout(context.Background(), benchLimit)
	defer cancel()
	// Three seconds and the drain behind them are a handful of samples, and so charts.
	bench := exec.CommandContext(ctx, os.Getenv("WAYBILL_BIN"), "bench", "quick", "--out", dir, "--for", "3s", "--warm-up", "100ms", "--keys", "20")
	bench.Stdout, bench.Stderr = os.Stderr, os.Stderr
	return dir, bench.Run()
})

func TestMain(m *testing.M) {
	status := m.Run()
	if made != "" {
		_ = os.RemoveAll(made) // it is below the system's own temporary directory
	}
	os.Exit(status)
}

func mustReport(t *testing.T) (html string, want summary) {
	t.Helper()
	if os.Getenv("WAYBILL_BIN") == "" && os.Getenv("WAYBILL_REPORT") == "" {
		t.Fatal("WAYBILL_BIN: is empty; name the waybill binary, or the directory of a report with WAYBILL_REPORT (make test-browser does)")
	}
	dir, err := report()
	if err != nil {
		t.Fatalf("waybill bench: %v", err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "report.html"))
	if err != nil {
		t.Fatal(err)
	}
	found, err := os.ReadFile(filepath.Join(dir, "summary.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(found, &want); err != nil {
		t.Fatal(err)
	}
	return string(text), want
}

// examine opens a page in a browser and returns everything that is wrong with it.
func examine(t *testing.T, browser context.Context, html string, want summary) []string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "report.html")
	if err := os.WriteFile(path, []byte(html), 0o644); err != nil {
		t.Fatal(err)
	}
	address := (&url.URL{Scheme: "file", Path: path}).String()
	shows, noise := open(t, browser, address, look)
	return append(noise.faults(address), shows.faults(want)...)
}

// TestReport: the report of a run shows its title, the verdict before all else and every chart
// with its data, complains of nothing and loads nothing.
func TestReport(t *testing.T) {
	html, want := mustReport(t)
	if len(want.Stages)+len(want.Series) == 0 || len(want.Correctness) == 0 {
		t.Fatalf("the report has %d stages, %d charts of the whole run and %d verdicts; want something to look at", len(want.Stages), len(want.Series), len(want.Correctness))
	}
	for _, what := range examine(t, startBrowser(t), html, want) {
		t.Error(what)
	}
}

// TestBrokenReport: each thing that could be wrong with a page is noticed.
func TestBrokenReport(t *testing.T) {
	html, want := mustReport(t)
	browser := startBrowser(t)
	for _, broken := range []struct{ name, old, new, notices string }{
		{"another title", "<title>waybill bench", "<title>bench", "title: "},
		{"the verdict is not first", `<h2 id="correctness">`, "<h2>Figures</h2><h2 id=\"correctness\">", "headings: "},
		{"the verdict is hidden", `<h2 id="correctness">`, `<h2 id="correctness" style="display:none">`, "cannot be seen"},
		{"a row is missing", "<td>" + want.Correctness[0].Sink + "</td>", "<td>nobody</td>", "correctness: "},
		{"no chart has a size", "</style>", "svg { display: none; }</style>", "size: 0 × 0"},
		{"a line without points", ` points="`, ` data-points="`, "data: "},
		{"a line without a colour", "</style>", "polyline { stroke: none; }</style>", "no colour"},
		{"a line outside", "</style>", "polyline { transform: translate(2000px, 0); }</style>", "not inside the chart"},
		{"a legend is missing", `<div class="legend"><span>`, `<div class="legend"><b>`, "legend: "},
		{"a script fails", "</body>", "<script>throw new Error('broken')</script></body>", "console: "},
		{"a script complains", "</body>", "<script>console.error('broken')</script></body>", "console: error"},
		{"it loads a picture", "</body>", `<img src="http://127.0.0.1:1/a.png"></body>`, "requests: http://127.0.0.1:1/a.png"},
		{"it is too wide", "</body>", `<div style="width:3000px">wide</div></body>`, "width: "},
	} {
		t.Run(broken.name, func(t *testing.T) {
			if !strings.Contains(html, broken.old) {
				t.Fatalf("the page has no %q to break", broken.old)
			}
			faults := examine(t, browser, strings.Replace(html, broken.old, broken.new, 1), want)
			if !strings.Contains(strings.Join(faults, "\n"), broken.notices) {
				t.Errorf("noticed: %q; want %q", faults, broken.notices)
			}
		})
	}
}
