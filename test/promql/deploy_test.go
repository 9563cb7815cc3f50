// Package promql holds the dashboards and alert rules of deploy/ against the metrics that exist and the
// runbook. It is a module of its own: nobody who builds Waybill needs Prometheus's.
package promql

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql/parser"
	"go.yaml.in/yaml/v3"

	"github.com/waybillhq/waybill/internal/metricsdoc"
)

// ofPrometheus are the labels that Prometheus and its exporter add to every metric.
var ofPrometheus = []string{"job", "instance", "otel_scope_name"}

// mustMetrics returns the labels of every series that docs/metrics.md has, by the names that
// queries use.
func mustMetrics(t *testing.T) map[string][]string {
	t.Helper()
	documented, err := metricsdoc.Read(filepath.Join("..", "..", "docs", "metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	series := map[string][]string{}
	for _, m := range documented {
		names := []string{m.Prometheus}
		if m.Type == "histogram" {
			names = []string{m.Prometheus + "_bucket", m.Prometheus + "_sum", m.Prometheus + "_count"}
		}
		for _, name := range names {
			series[name] = append(series[name], ofPrometheus...)
			for _, a := range m.Attributes {
				series[name] = append(series[name], metricsdoc.Label(a))
			}
			if strings.HasSuffix(name, "_bucket") {
				series[name] = append(series[name], "le")
			}
		}
	}
	if len(series) < 50 {
		t.Fatalf("only %d series are documented", len(series))
	}
	return series
}

// faults says what is wrong with a query: it does not parse, or names metrics or labels that are
// not there.
func faults(query string, series map[string][]string) []string {
	expr, err := parser.NewParser(parser.Options{}).ParseExpr(strings.ReplaceAll(query, "$__rate_interval", "1m"))
	if err != nil {
		return []string{err.Error()}
	}
	var out []string
	var known []string // labels of any metric of the query
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		s, ok := node.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		have, exists := series[s.Name]
		if !exists {
			out = append(out, "there is no metric "+s.Name)
		}
		known = append(known, have...)
		for _, m := range s.LabelMatchers {
			if m.Name != model.MetricNameLabel && !slices.Contains(have, m.Name) {
				out = append(out, s.Name+" has no label "+m.Name)
			}
		}
		return nil
	})
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		if a, ok := node.(*parser.AggregateExpr); ok {
			for _, label := range a.Grouping {
				if !slices.Contains(known, label) {
					out = append(out, "no metric of the query has the label "+label)
				}
			}
		}
		return nil
	})
	return out
}

// The check itself sees what it is for.
func TestFaultsAreSeen(t *testing.T) {
	series := map[string][]string{"a_total": {"sink", "job"}}
	for query, want := range map[string]string{
		`sum by (sink) (rate(a_total{job="x"}[$__rate_interval]))`: "",
		`sum(rate(a_total[5m])`:             "unclosed",
		`sum(rate(b_total[5m]))`:            "no metric b_total",
		`a_total{code="x"}`:                 "no label code",
		`sum by (code) (rate(a_total[5m]))`: "label code",
	} {
		got := strings.Join(faults(query, series), "; ")
		if (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
}

// dashboard is what the tests look at of a Grafana dashboard.
type dashboard struct {
	UID    string
	Title  string
	Panels []struct {
		ID      int
		Title   string
		GridPos struct{ X, Y, W, H int }
		Targets []struct{ Expr, LegendFormat string }
	}
}

var legendLabel = regexp.MustCompile(`\{\{(\w+)\}\}`)

func TestDashboards(t *testing.T) {
	series := mustMetrics(t)
	files, err := filepath.Glob("../../deploy/grafana/*.json")
	if err != nil || len(files) != 5 {
		t.Fatalf("%d dashboards, want the overview, one for each process, and the tables: %v", len(files), err)
	}
	uids := map[string]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var d dashboard
		if err := json.Unmarshal(text, &d); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if d.UID == "" || uids[d.UID] || d.Title == "" || len(d.Panels) < 5 {
			t.Errorf("%s: uid %q, title %q, %d panels", file, d.UID, d.Title, len(d.Panels))
		}
		uids[d.UID] = true
		for _, p := range d.Panels {
			if len(p.Targets) == 0 || p.GridPos.W == 0 || p.GridPos.X+p.GridPos.W > 24 {
				t.Errorf("%s: %s: %d targets at %+v", file, p.Title, len(p.Targets), p.GridPos)
			}
			for _, target := range p.Targets {
				for _, fault := range faults(target.Expr, series) {
					t.Errorf("%s: %s: %s: %s", file, p.Title, target.Expr, fault)
				}
				for _, match := range legendLabel.FindAllStringSubmatch(target.LegendFormat, -1) {
					if !strings.Contains(target.Expr, match[1]) {
						t.Errorf("%s: %s: the legend has %s, and %s does not keep it", file, p.Title, match[1], target.Expr)
					}
				}
			}
		}
	}
}

// rules is a file of alert rules.
type rules struct {
	Groups []struct {
		Name  string
		Rules []struct {
			Alert, Expr, For    string
			Labels, Annotations map[string]string
		}
	}
}

// runbook is the page that the rules link to.
const runbook = "https://github.com/waybillhq/waybill/blob/main/docs/operations.md#"

var (
	heading  = regexp.MustCompile(`(?m)^#+ (.+)$`)
	noAnchor = regexp.MustCompile(`[^\p{L}\p{N}\- _]`)
	byLabel  = regexp.MustCompile(`\$labels\.(\w+)`)
)

// anchors are those of the headings of a page, as GitHub makes them.
func anchors(page string) map[string]bool {
	out := map[string]bool{}
	for _, match := range heading.FindAllStringSubmatch(page, -1) {
		out[strings.ReplaceAll(noAnchor.ReplaceAllString(strings.ToLower(match[1]), ""), " ", "-")] = true
	}
	return out
}

func TestAlerts(t *testing.T) {
	series := mustMetrics(t)
	text, err := os.ReadFile("../../deploy/prometheus/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file rules
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	known, seen := anchors(string(page)), map[string]bool{}
	for _, group := range file.Groups {
		for _, rule := range group.Rules {
			if seen[rule.Alert] {
				t.Errorf("%s is there twice", rule.Alert)
			}
			seen[rule.Alert] = true
			for _, fault := range faults(rule.Expr, series) {
				t.Errorf("%s: %s", rule.Alert, fault)
			}
			anchor, ok := strings.CutPrefix(rule.Annotations["runbook_url"], runbook)
			if !ok || !known[anchor] {
				t.Errorf("%s: the page has no anchor for %q", rule.Alert, rule.Annotations["runbook_url"])
			}
			if !strings.Contains(string(page), "`"+rule.Alert+"`") {
				t.Errorf("%s: the page does not speak of it", rule.Alert)
			}
			if s := rule.Labels["severity"]; s != "warning" && s != "critical" {
				t.Errorf("%s: severity %q", rule.Alert, s)
			}
			for _, match := range byLabel.FindAllStringSubmatch(rule.Annotations["summary"], -1) {
				if !strings.Contains(rule.Expr, match[1]) {
					t.Errorf("%s: the summary has the label %s, and the expression does not keep it", rule.Alert, match[1])
				}
			}
			if rule.Annotations["summary"] == "" {
				t.Errorf("%s has no summary", rule.Alert)
			}
		}
	}
	// What must be told of.
	for _, alert := range []string{
		"WaybillAcceptSlow", "WaybillCommitSlow", "WaybillPublishSlow", "WaybillSendSlow", "WaybillSettleSlow", "WaybillDeliverySlow",
		"WaybillBacklogOld", "WaybillNearTTL", "WaybillDeadLetters", "WaybillNoJanitor", "WaybillSinkDown",
	} {
		if !seen[alert] {
			t.Errorf("there is no rule %s", alert)
		}
	}
}
