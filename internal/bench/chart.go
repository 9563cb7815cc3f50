package bench

import (
	"fmt"
	"html"
	"html/template"
	"math"
	"slices"
	"strings"
)

// Size of a chart and of its margins, in pixels.
const (
	chartWidth, chartHeight         = 560, 240
	marginLeft, marginRight         = 64, 12
	marginTop, marginBottom         = 10, 34
	plotWidth, plotHeight   float64 = chartWidth - marginLeft - marginRight, chartHeight - marginTop - marginBottom
)

// lineColours are far apart for people who see colours differently.
var lineColours = []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999", "#7b5ea7"}

// chart is lines over a common x.
type chart struct {
	Title, X, Y, Note string
	Kind              Kind
	LogY              bool
	XNames            []string // of x = 0, 1, …; nil: numbers
	SVG               template.HTML

	lines []SeriesLine
}

func (c *chart) add(name string, x, y float64) { c.lines = addPoint(c.lines, name, x, y) }

// draw makes the SVG and reports whether there is anything in it. A line of one point cannot be
// seen and is left out, of the legend too.
func (c *chart) draw() bool {
	c.lines = slices.DeleteFunc(c.lines, func(l SeriesLine) bool { return len(l.X) < 2 })
	if len(c.lines) == 0 {
		return false
	}
	maxX, minY, maxY := 0.0, math.Inf(1), 0.0
	for _, l := range c.lines {
		for i := range l.X {
			maxX, minY, maxY = max(maxX, l.X[i]), min(minY, l.Y[i]), max(maxY, l.Y[i])
		}
	}
	if maxX == 0 || maxY == 0 { // an axis would have no length
		return false
	}
	toX := func(x float64) float64 { return marginLeft + x/maxX*plotWidth }
	toY := func(y float64) float64 { return marginTop + (1-y/(maxY*1.05))*plotHeight }
	ticks := linearTicks(maxY)
	if c.LogY {
		low, high := math.Floor(math.Log10(minY)), math.Ceil(math.Log10(maxY))
		if high == low {
			high++
		}
		toY = func(y float64) float64 { return marginTop + (1-(math.Log10(y)-low)/(high-low))*plotHeight }
		ticks = nil
		for e := low; e <= high; e++ {
			ticks = append(ticks, math.Pow(10, e))
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg viewBox="0 0 %d %d" role="img" aria-label="%s">`, chartWidth, chartHeight, html.EscapeString(c.Title))
	for _, y := range ticks {
		fmt.Fprintf(&b, `<line class="grid" x1="%d" x2="%d" y1="%.1f" y2="%.1f"/><text class="tick" x="%d" y="%.1f" text-anchor="end">%s</text>`,
			marginLeft, chartWidth-marginRight, toY(y), toY(y), marginLeft-6, toY(y)+4, shortValue(y))
	}
	c.drawX(&b, maxX, toX)
	for i, l := range c.lines {
		points := make([]string, len(l.X))
		for j := range l.X {
			points[j] = fmt.Sprintf("%.1f,%.1f", toX(l.X[j]), toY(l.Y[j]))
		}
		fmt.Fprintf(&b, `<polyline fill="none" stroke="%s" stroke-width="1.8" points="%s"><title>%s</title></polyline>`,
			lineColours[i%len(lineColours)], strings.Join(points, " "), html.EscapeString(l.Name))
	}
	b.WriteString(`</svg><div class="legend">`)
	for i, l := range c.lines {
		fmt.Fprintf(&b, `<span><i style="background:%s"></i>%s</span>`, lineColours[i%len(lineColours)], html.EscapeString(l.Name))
	}
	b.WriteString(`</div>`)
	c.SVG = template.HTML(b.String()) // names are escaped above
	return true
}

func (c *chart) drawX(b *strings.Builder, maxX float64, toX func(float64) float64) {
	text := func(x float64, label string) {
		fmt.Fprintf(b, `<text class="tick" x="%.1f" y="%d" text-anchor="middle">%s</text>`, toX(x), chartHeight-marginBottom+14, html.EscapeString(label))
	}
	for i, name := range c.XNames {
		text(float64(i), name)
	}
	if c.XNames == nil {
		for _, x := range linearTicks(maxX) {
			text(x, shortValue(x))
		}
	}
	fmt.Fprintf(b, `<text class="tick" x="%d" y="%d" text-anchor="middle">%s</text>`, marginLeft+int(plotWidth)/2, chartHeight-4, html.EscapeString(c.X))
}

// linearTicks are a few round values from 0 to the highest.
func linearTicks(highest float64) []float64 {
	step := math.Pow(10, math.Floor(math.Log10(highest)))
	for highest/step < 4 {
		step /= 2
	}
	var out []float64
	for y := 0.0; y <= highest; y += step {
		out = append(out, y)
	}
	return out
}

// shortValue is a value for an axis.
func shortValue(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%gM", v/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%gk", v/1e3)
	default:
		return fmt.Sprintf("%.4g", v)
	}
}
