package bench

import "slices"

// Timeline is values over time of several parts, which are put side by side in charts by groups. It is
// in the file NAME.csv.
type Timeline struct {
	Name    string
	Title   string
	Columns []TimelineColumn
	Points  []TimelinePoint
}

// TimelineColumn is a value that the points have.
type TimelineColumn struct {
	Name, Unit string
	// Kind of its chart; empty: it has none.
	Kind Kind
}

// TimelinePoint is what was seen at one moment of a part. What is not known is not in Values.
type TimelinePoint struct {
	Group, Part string
	Seconds     float64            // since the part began
	Values      map[string]float64 // by column
}

// of returns the points of a part, in order.
func (s *Timeline) of(part string) []TimelinePoint {
	var out []TimelinePoint
	for _, p := range s.Points {
		if p.Part == part {
			out = append(out, p)
		}
	}
	return out
}

// rows are those of the file.
func (s *Timeline) rows() [][]string {
	header := []string{"group", "part", "seconds"}
	for _, c := range s.Columns {
		name := c.Name
		if c.Unit != "" {
			name += " (" + c.Unit + ")"
		}
		header = append(header, name)
	}
	out := [][]string{header}
	for _, p := range s.Points {
		row := []string{p.Group, p.Part, formatValue(p.Seconds)}
		for _, c := range s.Columns {
			row = append(row, cell(p.Values, c.Name, formatNumber))
		}
		out = append(out, row)
	}
	return out
}

// Charts are one per group and column, with a line per part.
func (s *Timeline) Charts() []chart {
	var groups []string
	for _, p := range s.Points {
		if !slices.Contains(groups, p.Group) {
			groups = append(groups, p.Group)
		}
	}
	var out []chart
	for _, group := range groups {
		for _, column := range s.Columns {
			if column.Kind == "" {
				continue
			}
			c := chart{Title: group + ": " + column.Name, Y: column.Unit, X: "s", Kind: column.Kind}
			for _, p := range s.Points {
				if v, known := p.Values[column.Name]; known && p.Group == group {
					c.add(p.Part, p.Seconds, v)
				}
			}
			if c.draw() {
				out = append(out, c)
			}
		}
	}
	return out
}
