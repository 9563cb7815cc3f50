package bench

import "slices"

// Series is a chart of a report beside those of its stages: lines over a common x.
type Series struct {
	Title string       `json:"title"`
	X     string       `json:"x"`
	Y     string       `json:"y"`
	Kind  Kind         `json:"kind"`
	Note  string       `json:"note,omitempty"`    // what the kind leaves open
	LogY  bool         `json:"log_y,omitempty"`   // all of y are above 0 then
	Names []string     `json:"x_names,omitempty"` // of x = 0, 1, …; none: numbers
	Lines []SeriesLine `json:"lines"`
}

// SeriesLine is one line: as many y as x, in order of x.
type SeriesLine struct {
	Name string    `json:"name"`
	X    []float64 `json:"values_x"`
	Y    []float64 `json:"values_y"`
}

// add appends a point to a line.
func (s *Series) add(name string, x, y float64) { s.Lines = addPoint(s.Lines, name, x, y) }

// addPoint appends a point to the line of a name, or begins one.
func addPoint(lines []SeriesLine, name string, x, y float64) []SeriesLine {
	for i := range lines {
		if l := &lines[i]; l.Name == name {
			l.X, l.Y = append(l.X, x), append(l.Y, y)
			return lines
		}
	}
	return append(lines, SeriesLine{name, []float64{x}, []float64{y}})
}

// series adds a chart to the report.
func (b *Bench) series(s Series) { b.report.Series = append(b.report.Series, s) }

// charts draws those series that have something to draw.
func (r *Report) charts() []chart {
	var out []chart
	for _, s := range r.Series {
		c := chart{
			Title: s.Title, X: s.X, Y: s.Y, Kind: s.Kind, Note: s.Note, LogY: s.LogY, XNames: s.Names,
			lines: slices.Clone(s.Lines), // drawing leaves some out
		}
		if c.draw() {
			out = append(out, c)
		}
	}
	return out
}
