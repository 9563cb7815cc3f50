// Package metricsdoc reads docs/metrics.md, which says what each process exports, for the tests
// that compare it with the processes, and dashboards and alerts with it.
package metricsdoc

import (
	"fmt"
	"os"
	"regexp"
	"strings"
)

// Metric is a row of a table.
type Metric struct {
	Process    string // heading of the table: ingest, forwarder, janitor or "every process"
	Name       string // of OpenTelemetry
	Prometheus string // as /metrics has it; of a histogram without _bucket, _sum and _count
	Type       string // counter, updowncounter, gauge or histogram
	Unit       string // as OpenTelemetry has it
	Attributes []string
	Meaning    string
}

// EveryProcess is the heading of what all processes have.
const EveryProcess = "every process"

var quoted = regexp.MustCompile("`([^`]+)`")

// Read reads the tables of the file. A row that cannot be read is an error.
func Read(path string) ([]Metric, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the list of metrics: %w", err)
	}
	var all []Metric
	process, inTable := "", false
	for n, line := range strings.Split(string(text), "\n") {
		switch {
		case strings.HasPrefix(line, "## "):
			process, inTable = strings.ToLower(strings.TrimPrefix(line, "## ")), false
		case strings.HasPrefix(line, "| name |"):
			inTable = true
		case !strings.HasPrefix(line, "|"):
			inTable = false
		case inTable && !strings.HasPrefix(line, "|---"):
			m, err := parse(line)
			if err != nil {
				return nil, fmt.Errorf("%s:%d: %w", path, n+1, err)
			}
			m.Process = process
			all = append(all, m)
		}
	}
	return all, nil
}

func parse(line string) (Metric, error) {
	cells := strings.Split(strings.Trim(line, "|"), "|")
	if len(cells) != 6 {
		return Metric{}, fmt.Errorf("%d cells, want name, Prometheus's name, type, unit, attributes, meaning", len(cells))
	}
	for i := range cells {
		cells[i] = strings.TrimSpace(cells[i])
	}
	m := Metric{Name: strings.Trim(cells[0], "`"), Prometheus: strings.Trim(cells[1], "`"), Type: cells[2], Unit: strings.Trim(cells[3], "`"), Meaning: cells[5]}
	for _, match := range quoted.FindAllStringSubmatch(cells[4], -1) {
		m.Attributes = append(m.Attributes, match[1])
	}
	return m, nil
}

// Label is an attribute's name, as Prometheus has it.
func Label(attribute string) string { return strings.ReplaceAll(attribute, ".", "_") }
