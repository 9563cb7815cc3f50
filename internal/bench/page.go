package bench

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"math"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"value": formatValue,
	"gib":   func(bytes int64) string { return fmt.Sprintf("%.1f GiB", float64(bytes)/(1<<30)) },
}).Parse(pageText))

// page is report.html: one file that loads nothing else.
func (r *Report) page() ([]byte, error) {
	type stageView struct {
		*Stage
		Rows   []Figure
		Charts []chart
	}
	view := struct {
		*Report
		Charts     []chart
		StageViews []stageView
	}{Report: r, Charts: r.charts()}
	for _, st := range r.Stages {
		view.StageViews = append(view.StageViews, stageView{st, st.figures(), st.charts()})
	}
	var out bytes.Buffer
	if err := pageTemplate.Execute(&out, view); err != nil {
		return nil, fmt.Errorf("write report.html: %w", err)
	}
	return out.Bytes(), nil
}

// charts are those of a stage.
func (st *Stage) charts() []chart {
	rate := chart{Title: "Throughput", Y: "events/s", X: "s", Kind: Absolute}
	pending := chart{Title: "Pending in Postgres", Y: "events", X: "s", Kind: Shape, Note: "flat or not; the height is absolute"}
	queued := chart{Title: "Queued in JetStream", Y: "messages", X: "s", Kind: Shape, Note: "flat or not; the height is absolute"}
	age := chart{Title: "Oldest waiting event", Y: "s", X: "s", Kind: Shape, Note: "flat or not; the height is absolute"}
	cpu := chart{Title: "CPU", Y: "cores", X: "s", Kind: Shape, Note: "the shares; the height is absolute"}
	for i := 1; i < len(st.Samples); i++ {
		before, now := st.Samples[i-1], st.Samples[i]
		x, passed := now.At.Sub(st.Samples[0].At).Seconds(), now.At.Sub(before.At).Seconds()
		rate.add("offered", x, float64(now.Offered-before.Offered)/passed)
		rate.add("accepted", x, float64(now.Accepted-before.Accepted)/passed)
		for _, sink := range sortedKeys(now.Delivered) {
			rate.add(sink, x, float64(now.Delivered[sink]-before.Delivered[sink])/passed)
		}
		for _, sink := range sortedKeys(now.Pending) {
			pending.add(sink, x, float64(now.Pending[sink]))
			age.add(sink, x, now.OldestAge[sink])
		}
		for _, sink := range sortedKeys(now.Queued) {
			queued.add(sink, x, float64(now.Queued[sink]))
		}
		for _, process := range sortedKeys(now.CPU) {
			cpu.add(process, x, (now.CPU[process]-before.CPU[process]).Seconds()/passed)
		}
	}
	latency := chart{Title: "Latency by percentile", Y: "ms", X: "percentile", Kind: Absolute, LogY: true, XNames: percentileNames}
	latency.addCurve("accept", st.acceptCurve)
	latency.addCurve("accepted → ingress", st.ingressCurve)
	var out []chart
	for _, c := range []chart{rate, latency, pending, queued, age, cpu} {
		if c.draw() {
			out = append(out, c)
		}
	}
	return out
}

// percentiles of a curve, equally far from one another.
var (
	percentiles     = []float64{50, 75, 90, 95, 99, 99.5, 99.9, 100}
	percentileNames = []string{"p50", "p75", "p90", "p95", "p99", "p99.5", "p99.9", "max"}
)

func (c *chart) addCurve(name string, h *hdrhistogram.Histogram) {
	if h == nil || h.TotalCount() == 0 {
		return
	}
	for i, p := range percentiles {
		ms := float64(time.Duration(h.ValueAtPercentile(p))*latencyUnit) / float64(time.Millisecond)
		c.add(name, float64(i), math.Max(ms, 0.001))
	}
}
