package bench

import (
	"cmp"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Table is figures of several things alike, a row each. It is a file NAME.csv beside stats.csv,
// which has its figures too.
type Table struct {
	Name    string     `json:"name"`
	Title   string     `json:"title"`
	Note    string     `json:"note,omitempty"`
	Columns []Column   `json:"columns"`
	Rows    []TableRow `json:"rows"`
}

// Column is a figure that the rows have. Unit is empty where it is a mere number.
type Column struct {
	Name string `json:"name"`
	Unit string `json:"unit"`
	Kind Kind   `json:"kind"`
}

// TableRow is what was measured of one thing. What is not known of it is not in Values.
type TableRow struct {
	Name   string             `json:"name"`
	Values map[string]float64 `json:"values"`           // by column
	Remark string             `json:"remark,omitempty"` // what no figure says
}

// table adds an empty table to the report.
func (b *Bench) table(t Table) *Table {
	b.report.Tables = append(b.report.Tables, &t)
	return &t
}

// add puts a row into a table of the report, and tells of it.
func (b *Bench) add(t *Table, row TableRow) {
	t.Rows = append(t.Rows, row)
	b.config.Say(t.line(row))
}

// line is a row for people.
func (t *Table) line(row TableRow) string {
	var parts []string
	for _, c := range t.Columns {
		if v, known := row.Values[c.Name]; known {
			parts = append(parts, strings.TrimSpace(c.Name+" "+formatNumber(v)+" "+c.Unit))
		}
	}
	if row.Remark != "" {
		parts = append(parts, row.Remark)
	}
	return row.Name + ": " + strings.Join(parts, ", ")
}

// figures are those of all rows.
func (t *Table) figures() []Figure {
	var out []Figure
	for _, row := range t.Rows {
		for _, c := range t.Columns {
			if v, known := row.Values[c.Name]; known {
				out = append(out, Figure{Name: row.Name + ": " + c.Name, Value: v, Unit: cmp.Or(c.Unit, "number"), Kind: c.Kind})
			}
		}
	}
	return out
}

// Cell is a value as the page and the file show it, or nothing where it is not known.
func (t *Table) Cell(row TableRow, column Column) string {
	return cell(row.Values, column.Name, formatNumber)
}

// formatNumber is formatValue, but for whole numbers, which are mostly counts.
func formatNumber(v float64) string {
	if v == math.Trunc(v) {
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	return formatValue(v)
}

// rows are those of the file.
func (t *Table) rows() [][]string {
	header := []string{"name"}
	for _, c := range t.Columns {
		name := c.Name
		if c.Unit != "" {
			name = fmt.Sprintf("%s (%s)", c.Name, c.Unit)
		}
		header = append(header, name)
	}
	out := [][]string{append(header, "remark")}
	for _, row := range t.Rows {
		line := []string{row.Name}
		for _, c := range t.Columns {
			line = append(line, t.Cell(row, c))
		}
		out = append(out, append(line, row.Remark))
	}
	return out
}
