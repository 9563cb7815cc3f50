package bench

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Kind says where a figure is valid.
type Kind string

const (
	// Shape is valid on any machine.
	Shape Kind = "shape"
	// Absolute is valid on the machine that the report names.
	Absolute Kind = "absolute"
)

// Figure is one value that is not a stage's.
type Figure struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
	Kind  Kind    `json:"kind"`
}

// Report is what a run found. Its JSON is summary.json.
type Report struct {
	Scenario string    `json:"scenario"`
	OK       bool      `json:"ok"`
	Error    string    `json:"error,omitempty"` // why the run did not come to its end
	Started  time.Time `json:"started"`
	Seconds  float64   `json:"seconds"`

	Correctness []Verdict      `json:"correctness"`
	Targets     []TargetResult `json:"targets,omitempty"`
	Figures     []Figure       `json:"figures,omitempty"`
	Series      []Series       `json:"series,omitempty"`
	Tables      []*Table       `json:"tables,omitempty"`
	Timelines   []*Timeline    `json:"-"` // in files of their own
	Stages      []*Stage       `json:"stages,omitempty"`
	Missing     []string       `json:"missing,omitempty"` // what could not be measured
	Notes       []string       `json:"notes,omitempty"`

	Machine  Machine           `json:"machine"`
	Versions map[string]string `json:"versions"`
	Command  string            `json:"command"`
}

func newReport(scenario Scenario, config Config) *Report {
	return &Report{
		Scenario: scenario.Name, Started: time.Now().UTC(), Correctness: []Verdict{},
		Machine: readMachine(), Versions: ownVersions(), Command: quoteCommand(config.Command),
	}
}

func quoteCommand(args []string) string {
	quoted := make([]string, len(args))
	for i, arg := range args {
		arg = withoutPassword(arg)
		quoted[i] = arg
		if arg == "" || strings.ContainsAny(arg, " \t\n'\"\\$&|;<>()*?[]#~`!{}") {
			quoted[i] = "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
		}
	}
	return strings.Join(quoted, " ")
}

// withoutPassword replaces the password of a URL, which may stand behind a flag's name.
func withoutPassword(arg string) string {
	flag, value, ok := strings.Cut(arg, "=")
	if !ok || !strings.HasPrefix(flag, "--") {
		flag, value = "", arg
	} else {
		flag += "="
	}
	if u, err := url.Parse(value); err == nil && u.User != nil {
		return flag + u.Redacted()
	}
	return arg
}

// finish sets what is known at the end only.
func (r *Report) finish(err error) {
	r.Seconds = time.Since(r.Started).Seconds()
	if err != nil {
		r.Error = err.Error()
	}
	r.OK = err == nil &&
		!slices.ContainsFunc(r.Correctness, func(v Verdict) bool { return !v.OK() }) &&
		!slices.ContainsFunc(r.Targets, func(t TargetResult) bool { return !t.OK })
}

// Write writes all files of the report into a directory.
func (r *Report) Write(dir string) error {
	summary, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write summary.json: %w", err)
	}
	page, err := r.page()
	if err != nil {
		return err
	}
	files := map[string][]byte{
		"summary.json": append(summary, '\n'), "timeseries.csv": encodeCSV(r.timeseries()),
		"stats.csv": encodeCSV(r.stats()), "report.html": page, "bench.txt": []byte(r.benchLines()),
	}
	for _, t := range r.Tables {
		files[t.Name+".csv"] = encodeCSV(t.rows())
	}
	for _, s := range r.Timelines {
		files[s.Name+".csv"] = encodeCSV(s.rows())
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			return fmt.Errorf("write the report: %w", err)
		}
	}
	return nil
}

func encodeCSV(rows [][]string) []byte {
	var b bytes.Buffer
	_ = csv.NewWriter(&b).WriteAll(rows) // into memory
	return b.Bytes()
}

// timeseries is a row a sample. What is not known of a sink or process is empty.
func (r *Report) timeseries() [][]string {
	sinks, processes := map[string]bool{}, map[string]bool{}
	for _, st := range r.Stages {
		for _, s := range st.Samples {
			for _, known := range []map[string]int64{s.Delivered, s.Pending, s.Queued} {
				for sink := range known {
					sinks[sink] = true
				}
			}
			for process := range s.CPU {
				processes[process] = true
			}
		}
	}
	header := []string{"time", "system", "stage", "offered", "accepted", "wal_bytes"}
	for _, sink := range sortedKeys(sinks) {
		for _, column := range []string{"delivered", "pending", "oldest_age_s", "queued"} {
			header = append(header, sink+"_"+column)
		}
	}
	for _, process := range sortedKeys(processes) {
		header = append(header, process+"_cpu_s")
	}
	rows := [][]string{header}
	for _, st := range r.Stages {
		for _, s := range st.Samples {
			row := []string{s.At.UTC().Format("2006-01-02T15:04:05.000Z"), st.System, s.Stage, itoa(s.Offered), itoa(s.Accepted), itoa(s.WAL)}
			for _, sink := range sortedKeys(sinks) {
				row = append(row, cell(s.Delivered, sink, itoa), cell(s.Pending, sink, itoa), cell(s.OldestAge, sink, formatValue), cell(s.Queued, sink, itoa))
			}
			for _, process := range sortedKeys(processes) {
				row = append(row, cell(s.CPU, process, func(used time.Duration) string { return formatValue(used.Seconds()) }))
			}
			rows = append(rows, row)
		}
	}
	return rows
}

// cell is a value of a map, or nothing where it has none.
func cell[V any](of map[string]V, key string, format func(V) string) string {
	v, known := of[key]
	if !known {
		return ""
	}
	return format(v)
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

// stats is a row a figure.
func (r *Report) stats() [][]string {
	rows := [][]string{{"system", "stage", "name", "value", "unit", "kind"}}
	for _, v := range r.Correctness {
		if v.Unchecked != "" {
			continue
		}
		for _, f := range []struct {
			name  string
			value int64
		}{
			{"accepted", v.Accepted},
			{"delivered", v.Delivered},
			{"pending", v.Pending},
			{"dead letters", v.DeadLetters},
			{"lost", v.Lost},
			{"doubled", v.Doubled},
			{"unknown", v.Unknown},
			{"refused", v.Refused},
		} {
			rows = append(rows, []string{v.System, "", "correctness " + v.Sink + " " + f.name, itoa(f.value), "events", string(Shape)})
		}
	}
	for _, f := range r.allFigures() {
		rows = append(rows, []string{"", "", f.Name, formatValue(f.Value), f.Unit, string(f.Kind)})
	}
	for _, st := range r.Stages {
		for _, f := range st.figures() {
			rows = append(rows, []string{st.System, st.Load.Name, f.Name, formatValue(f.Value), f.Unit, string(f.Kind)})
		}
	}
	return rows
}

// allFigures are those that are not a stage's, the tables' included.
func (r *Report) allFigures() []Figure {
	out := slices.Clone(r.Figures)
	for _, t := range r.Tables {
		out = append(out, t.figures()...)
	}
	return out
}

// figures are those of a stage.
func (st *Stage) figures() []Figure {
	out := []Figure{
		{"offered", st.OfferRate, "events/s", Absolute},
		{"accepted", st.AcceptRate, "events/s", Absolute},
		{"not accepted", float64(st.Failed), "events", Shape},
	}
	for _, sink := range sortedKeys(st.DeliverRate) {
		out = append(out,
			Figure{"delivered " + sink, st.DeliverRate[sink], "events/s", Absolute},
			Figure{"backlog growth " + sink, float64(st.BacklogGrowth[sink]), "events", Shape})
	}
	for _, sink := range sortedKeys(st.MaxQueued) {
		out = append(out, Figure{"queued at most " + sink, float64(st.MaxQueued[sink]), "messages", Absolute})
	}
	for _, sink := range sortedKeys(st.MaxOldest) {
		out = append(out, Figure{"oldest at most " + sink, st.MaxOldest[sink], "s", Absolute})
	}
	for _, l := range []struct {
		name string
		q    Quantiles
	}{{"accept", st.Accept}, {"accepted to ingress", st.Ingress}, {"due to ingress", st.EndToEnd}, {"generator lag", st.Lag}} {
		if l.q.Count == 0 {
			continue
		}
		for _, q := range []struct {
			name  string
			value float64
		}{{"p50", l.q.P50}, {"p90", l.q.P90}, {"p95", l.q.P95}, {"p99", l.q.P99}, {"p99.9", l.q.P999}, {"max", l.q.Max}} {
			out = append(out, Figure{l.name + " " + q.name, q.value, "ms", Absolute})
		}
	}
	for _, process := range sortedKeys(st.CPU) {
		out = append(out, Figure{"CPU " + process, st.CPU[process], "µs/event", Absolute})
	}
	if st.WAL > 0 {
		out = append(out, Figure{"WAL", st.WAL, "bytes/event", Shape})
	}
	if st.Allocations > 0 {
		out = append(out, Figure{"allocations of ingest", st.Allocations, "objects/event", Shape})
	}
	for _, process := range sortedKeys(st.Memory) {
		out = append(out, Figure{"peak RSS " + process, float64(st.Memory[process]) / (1 << 20), "MiB", Absolute})
	}
	return append(out, Figure{"drain", st.DrainSeconds, "s", Absolute})
}

// benchLines are a Go benchmark's, a line a stage, for benchstat. A name goes on with an upper
// case letter, or it is none.
func (r *Report) benchLines() string {
	var b strings.Builder
	fmt.Fprintf(&b, "goos: linux\ngoarch: %s\npkg: github.com/waybillhq/waybill/internal/bench\ncpu: %s\n", r.Machine.Arch, r.Machine.CPU)
	scenario := strings.ToUpper(r.Scenario[:1]) + benchName(r.Scenario[1:])
	for _, st := range r.Stages {
		if st.Accepted == 0 {
			continue
		}
		fmt.Fprintf(&b, "Benchmark%s/%s/%s %d %.1f ns/op", scenario, benchName(st.System), benchName(st.Load.Name), st.Accepted, 1e9/st.AcceptRate)
		for _, sink := range sortedKeys(st.DeliverRate) {
			fmt.Fprintf(&b, " %.1f %s-events/s", st.DeliverRate[sink], sink)
		}
		fmt.Fprintf(&b, " %.4f accept-p50-ms %.4f accept-p99-ms", st.Accept.P50, st.Accept.P99)
		if st.Ingress.Count > 0 {
			fmt.Fprintf(&b, " %.4f ingress-p50-ms %.4f ingress-p99-ms", st.Ingress.P50, st.Ingress.P99)
		}
		fmt.Fprintf(&b, " %.3f cpu-us/event %.1f wal-B/event\n", st.TotalCPU(), st.WAL)
	}
	for _, f := range r.allFigures() {
		fmt.Fprintf(&b, "Benchmark%s/%s 1 %s %s\n", scenario, benchName(f.Name), formatValue(f.Value), strings.ReplaceAll(f.Unit, " ", "-"))
	}
	return b.String()
}

// benchName is a name without what ends one in a benchmark line.
func benchName(s string) string {
	return strings.Map(func(c rune) rune {
		switch {
		case c == ' ' || c == '/':
			return '_'
		case c < '!' || c > '~':
			return -1
		}
		return c
	}, s)
}

// formatValue keeps four significant digits, and all of the integer part.
func formatValue(v float64) string {
	if v == 0 || math.IsInf(v, 0) || math.IsNaN(v) {
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	digits := 3 - int(math.Floor(math.Log10(math.Abs(v))))
	return strconv.FormatFloat(v, 'f', min(max(digits, 0), 9), 64)
}
