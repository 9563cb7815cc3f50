package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/waybillhq/waybill/internal/metricsdoc"
)

// unbegun are metrics that begin with what has not happened yet: a fault, a call over gRPC, an event that expires,
// a vacuum. All others are there from the first event on.
var unbegun = []string{
	"rpc_server_call_duration_seconds", "waybill_archive_conflicts_total", "waybill_archive_duplicates_total",
	"waybill_dead_letters_total", "waybill_flush_failures_total", "waybill_forwarder_order_inversions_total",
	"waybill_forwarder_receipt_failures_total", "waybill_forwarder_resets_total", "waybill_forwarder_retransmits_total",
	"waybill_ingest_duplicates_total", "waybill_ingest_events_refused_total", "waybill_ingest_requests_refused_total",
	"waybill_pending_ttl_budget_seconds", "waybill_publish_left_total", "waybill_sink_results_mismatched_total",
	"waybill_sink_splits_total", "waybill_table_vacuum_age_seconds",
}

// word is what may be the name of a metric in a query.
var word = regexp.MustCompile(`[a-z][a-z0-9_]+`)

var partOfHistogram = regexp.MustCompile(`_(bucket|sum|count)$`)

// mustHaveDashboards checks that the page names the dashboards that there are, and that the running processes have the
// metrics of their panels.
func (h *hour) mustHaveDashboards(t *testing.T) {
	t.Helper()
	files, err := filepath.Glob("../../deploy/grafana/*.json")
	if err != nil {
		t.Fatal(err)
	}
	var there, named []string
	for _, file := range files {
		there = append(there, filepath.Base(file))
	}
	for _, match := range regexp.MustCompile(`\(\.\./deploy/grafana/(\w+\.json)\)`).FindAllStringSubmatch(h.act.text, -1) {
		named = append(named, match[1])
	}
	if slices.Sort(named); len(there) == 0 || !slices.Equal(there, named) {
		t.Errorf("there are the dashboards %v, and the page names %v", there, named)
	}
	documented, err := metricsdoc.Read("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]metricsdoc.Metric{}
	for _, m := range documented {
		known[m.Prometheus] = m
	}
	// Some are read now and then.
	have := map[string]bool{}
	for deadline := time.Now().Add(showLimit); ; time.Sleep(100 * time.Millisecond) {
		for _, process := range []string{"ingest_1", "forwarder_1", "janitor_1"} {
			for name := range h.metrics(t, process) {
				have[name] = true
			}
		}
		var faults []string
		for _, file := range files {
			faults = append(faults, faultsOfPanels(t, file, known, have)...)
		}
		if len(faults) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("dashboards:\n%s", strings.Join(faults, "\n"))
		}
	}
}

// faultsOfPanels says which panels of a dashboard have queries without a metric, or with one that no process has.
func faultsOfPanels(t *testing.T, file string, known map[string]metricsdoc.Metric, have map[string]bool) (faults []string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	queries := 0
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			queries++
			metrics := metricsOf(target.Expr, known)
			if len(metrics) == 0 {
				faults = append(faults, fmt.Sprintf("%s: %s: %s has no metric", filepath.Base(file), p.Title, target.Expr))
			}
			for _, name := range metrics {
				if !have[name] && !slices.Contains(unbegun, name) {
					faults = append(faults, fmt.Sprintf("%s: %s: no process has %s", filepath.Base(file), p.Title, name))
				}
			}
		}
	}
	if queries < 5 {
		t.Fatalf("%s: %d queries; is it read rightly?", filepath.Base(file), queries)
	}
	return faults
}

// metricsOf are the metrics that a query names, as /metrics has them.
func metricsOf(query string, known map[string]metricsdoc.Metric) (names []string) {
	for _, name := range word.FindAllString(query, -1) {
		if _, ok := known[name]; !ok {
			name = partOfHistogram.ReplaceAllString(name, "")
		}
		if _, ok := known[name]; ok { // otherwise it is a function, a label or its value
			names = append(names, name)
		}
	}
	return names
}
