package browser

import (
	_ "embed"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// look is evaluated in the page and returns a page.
//
//go:embed look.js
var look string

// page is what a reader of a report sees.
type page struct {
	Title string `json:"title"`
	// Width is what the window has for the page, ScrollWidth what the page takes.
	Width       float64    `json:"width"`
	ScrollWidth float64    `json:"scrollWidth"`
	Headings    []heading  `json:"headings"`
	Correctness [][]string `json:"correctness"` // cells, row by row, without the head
	// Whole are the charts of the whole run, those of its stages are in the sections.
	Whole    []chart   `json:"whole"`
	Sections []section `json:"sections"`
	// Charts and Images are all of the document, in sections or not.
	Charts int `json:"charts"`
	Images int `json:"images"`
}

// box is a rectangle, in pixels of the page.
type box struct {
	Left   float64 `json:"left"`
	Top    float64 `json:"top"`
	Width  float64 `json:"width"`
	Height float64 `json:"height"`
}

type heading struct {
	Text string `json:"text"`
	Box  box    `json:"box"`
}

type section struct {
	Heading string  `json:"heading"`
	Rows    int     `json:"rows"`
	Charts  []chart `json:"charts"`
}

type chart struct {
	Caption string   `json:"caption"`
	Box     box      `json:"box"`
	Lines   []line   `json:"lines"`
	Legend  []string `json:"legend"`
	Ticks   []string `json:"ticks"`
}

type line struct {
	Name   string `json:"name"`
	Points int    `json:"points"`
	Finite bool   `json:"finite"`
	Colour string `json:"colour"`
	Box    box    `json:"box"`
}

// summary is what summary.json says of the same run, as far as it is compared with the page.
type summary struct {
	Scenario    string `json:"scenario"`
	OK          bool   `json:"ok"`
	Correctness []struct {
		System    string `json:"system"`
		Sink      string `json:"sink"`
		Accepted  int64  `json:"accepted"`
		Delivered int64  `json:"delivered"`
		Unchecked string `json:"unchecked"`
	} `json:"correctness"`
	Series []struct {
		Title string `json:"title"`
	} `json:"series"`
	Stages []struct {
		System  string  `json:"system"`
		Seconds float64 `json:"seconds"`
		Load    struct {
			Name string `json:"name"`
		} `json:"load"`
	} `json:"stages"`
}

const (
	// A chart is at least this large, in pixels, its widest line takes leastSpan of it or more (the
	// samples begin a second or so after the axis), and each can be seen.
	leastWidth, leastHeight = 300, 120
	leastSpan               = 0.3
	leastLine               = 0.01
	// sampledSeconds is how long a window must be to have samples enough for a chart over time.
	sampledSeconds = 3
)

// faults compares what a page shows with what was measured.
func (p page) faults(want summary) []string {
	var out []string
	fault := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if title := "waybill bench " + want.Scenario; p.Title != title {
		fault("title: %q; want %q", p.Title, title)
	}
	if p.ScrollWidth > p.Width {
		fault("width: the page takes %v pixels of %v", p.ScrollWidth, p.Width)
	}
	out = append(out, p.headingFaults(want)...)
	out = append(out, p.correctnessFaults(want)...)
	if len(p.Whole) < len(want.Series) {
		fault("charts: %d of the whole run; want %d or more", len(p.Whole), len(want.Series))
	}
	for _, c := range p.Whole {
		for _, what := range c.faults() {
			fault("chart %q: %s", c.Caption, what)
		}
	}
	if len(p.Sections) != len(want.Stages) {
		fault("sections: %d; want one for each of %d stages", len(p.Sections), len(want.Stages))
		return out
	}
	for i, s := range p.Sections {
		if name := want.Stages[i].System + ": " + want.Stages[i].Load.Name; s.Heading != name {
			fault("section %d: heading %q; want %q", i, s.Heading, name)
		}
		out = append(out, s.faults()...)
		if want.Stages[i].Seconds >= sampledSeconds && !s.has("Throughput") {
			fault("%s: charts: none with the title Throughput", s.Heading)
		}
	}
	if p.Images != p.Charts {
		fault("charts: %d captions and %d drawings", p.Charts, p.Images)
	}
	return out
}

// headingFaults are those of the order in which a report is read: the verdict first.
func (p page) headingFaults(want summary) []string {
	if len(p.Headings) < 3 {
		return []string{fmt.Sprintf("headings: %v; want a title, correctness and the machine at least", p.Headings)}
	}
	var out []string
	word := "NOT OK"
	if want.OK {
		word = "OK"
	}
	if title := "waybill bench " + want.Scenario + ": " + word; p.Headings[0].Text != title {
		out = append(out, fmt.Sprintf("headings: the first is %q; want %q", p.Headings[0].Text, title))
	}
	if p.Headings[1].Text != "Correctness" {
		out = append(out, fmt.Sprintf("headings: %q is the first below the title; want Correctness", p.Headings[1].Text))
	}
	for i, h := range p.Headings {
		if h.Box.Width <= 0 || h.Box.Height <= 0 {
			out = append(out, fmt.Sprintf("headings: %q cannot be seen", h.Text))
		}
		if i > 0 && h.Box.Top <= p.Headings[i-1].Box.Top {
			out = append(out, fmt.Sprintf("headings: %q is not below %q", h.Text, p.Headings[i-1].Text))
		}
	}
	return out
}

func (p page) correctnessFaults(want summary) []string {
	if len(p.Correctness) < len(want.Correctness) {
		return []string{fmt.Sprintf("correctness: %d rows; want %d or more", len(p.Correctness), len(want.Correctness))}
	}
	var out []string
	for _, v := range want.Correctness {
		row := []string{v.System, v.Sink, strconv.FormatInt(v.Accepted, 10), strconv.FormatInt(v.Delivered, 10)}
		if v.Unchecked != "" {
			row = []string{v.System, v.Sink, "not checked: " + v.Unchecked}
		}
		if !slices.ContainsFunc(p.Correctness, func(cells []string) bool { return len(cells) >= len(row) && slices.Equal(cells[:len(row)], row) }) {
			out = append(out, fmt.Sprintf("correctness: no row begins with %q", row))
		}
	}
	return out
}

func (s section) faults() []string {
	var out []string
	fault := func(format string, args ...any) { out = append(out, s.Heading+": "+fmt.Sprintf(format, args...)) }
	if s.Rows < 2 {
		fault("figures: none")
	}
	if !s.has("Latency by percentile") {
		fault("charts: none with the title Latency by percentile")
	}
	for _, c := range s.Charts {
		for _, what := range c.faults() {
			fault("chart %q: %s", c.Caption, what)
		}
	}
	return out
}

// has reports whether there is a chart with a title.
func (s section) has(title string) bool {
	return slices.ContainsFunc(s.Charts, func(c chart) bool { return strings.HasPrefix(c.Caption, title+" ") })
}

func (c chart) faults() []string {
	var out []string
	fault := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if !strings.Contains(c.Caption, "shape") && !strings.Contains(c.Caption, "absolute") {
		fault("the caption does not say where it is valid")
	}
	if c.Box.Width < leastWidth || c.Box.Height < leastHeight {
		fault("size: %v × %v pixels; want %d × %d or more", c.Box.Width, c.Box.Height, leastWidth, leastHeight)
		return out
	}
	if len(c.Lines) == 0 {
		fault("data: there is no line")
	}
	if len(c.Ticks) < 3 {
		fault("axes: %d labels", len(c.Ticks))
	}
	var names []string
	widest := 0.0
	for _, l := range c.Lines {
		names, widest = append(names, l.Name), max(widest, l.Box.Width)
		switch right, bottom := c.Box.Left+c.Box.Width, c.Box.Top+c.Box.Height; {
		case l.Points < 2 || !l.Finite:
			fault("data: line %q has %d points, all finite: %v", l.Name, l.Points, l.Finite)
		case l.Box.Width < leastLine*c.Box.Width:
			fault("data: line %q is %v pixels wide, of %v", l.Name, l.Box.Width, c.Box.Width)
		case l.Box.Left < c.Box.Left || l.Box.Top < c.Box.Top || l.Box.Left+l.Box.Width > right || l.Box.Top+l.Box.Height > bottom:
			fault("data: line %q is not inside the chart", l.Name)
		case l.Colour == "none" || l.Colour == "":
			fault("data: line %q has no colour", l.Name)
		}
	}
	if widest < leastSpan*c.Box.Width {
		fault("data: no line takes %v of the width", leastSpan)
	}
	if !slices.Equal(names, c.Legend) {
		fault("legend: %q; the lines are %q", c.Legend, names)
	}
	return out
}

// faults are what a page that loads nothing else and has no mistakes does not do.
func (n *noise) faults(url string) []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []string
	if len(n.requests) == 0 || n.requests[0] != url {
		out = append(out, fmt.Sprintf("requests: %q; want the page itself first", n.requests))
	}
	for i, request := range n.requests {
		if i > 0 {
			out = append(out, "requests: "+request)
		}
	}
	for _, complaint := range n.complaints {
		out = append(out, "console: "+complaint)
	}
	return out
}
