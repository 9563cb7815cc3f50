package bench

import (
	"bytes"
	"encoding/csv"
	"strings"
	"testing"
)

// TestTableIsInAllFiles: as a table, as figures, and in a file of its own.
func TestTableIsInAllFiles(t *testing.T) {
	r := sampleReport()
	r.Tables = []*Table{{
		Name: "tables", Title: "Many <things>", Columns: []Column{{"p50", "ms", Absolute}, {"share", "", Shape}},
		Rows: []TableRow{{Name: "one", Values: map[string]float64{"p50": 1.25}, Remark: "slow, \"very\""}, {Name: "two", Values: map[string]float64{"p50": 2, "share": 0}}},
	}}
	file := mustWrite(t, r)
	rows, err := csv.NewReader(bytes.NewReader(file("tables.csv"))).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	got := ""
	for _, row := range rows {
		got += strings.Join(row, "|") + "\n"
	}
	if want := "name|p50 (ms)|share|remark\none|1.250||slow, \"very\"\ntwo|2|0|\n"; got != want {
		t.Errorf("tables.csv: %s; want %s", got, want)
	}
	for name, want := range map[string]string{
		"summary.json": `"p50": 1.25`, "stats.csv": "two: share,0,number,shape", "report.html": "Many &lt;things&gt;",
		"bench.txt": "BenchmarkSample/one:_p50 1 1.250 ms",
	} {
		if !bytes.Contains(file(name), []byte(want)) {
			t.Errorf("%s lacks %q", name, want)
		}
	}
	for line := range strings.Lines(string(file("bench.txt"))) {
		if strings.HasPrefix(line, "Benchmark") && !benchLine.MatchString(strings.TrimSpace(line)) {
			t.Errorf("%q is no benchmark line", line)
		}
	}
}
