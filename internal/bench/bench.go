package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// Scenario is something that can be measured.
type Scenario struct {
	// Name on the command line, Help is a line for people.
	Name, Help string
	// Run measures with b and returns once everything it started is stopped.
	Run func(ctx context.Context, b *Bench) error
}

// Scenarios are all there are, in the order in which they are listed.
func Scenarios() []Scenario {
	return []Scenario{
		{"limit", "what this machine can do at most, with the same bytes: COPY, commits, JetStream, gRPC, HTTP, fsync", runLimit},
		{"baseline", "tiny events at the highest sustained rate; and 10 closed-loop callers that send 100,000 events one by one", runBaseline},
		{"payload", "events of 50 B, 200 B, 1 KB, 5 KB, 20 KB and 50 KB", runPayload},
		{"realistic", "60/30/10 mix of track, identify and page events with real-looking bodies, 450 keys", runRealistic},
		{"burst", "spikes of 10 times a base load: queue depth and time to drain", runBurst},
		{"errors", "10 % invalid events: what refusing costs, and whether each verdict is right", runErrors},
		{"ramp", "100, 500, 1k, 2k, … events/s until the system no longer keeps up: the knee, and what bounds it", runRamp},
		{"sustained", "1k, 10k and 20k events/s for a minute each, or for --for: is the queue flat", runSustained},
		{"outage", "a million events while the endpoint is down, and how fast they drain once it is up", runOutage},
		{"slow-sink", "an endpoint that answers after 50 ms and after 1 s", runSlowSink},
		{"scale", "1, 2 and 4 forwarders against an endpoint that answers after 50 ms", runScale},
		{"lanes", "1, 4 and 16 lanes, for few callers, many connections and large calls", runLanes},
		{"propagation", "from the transaction to a consumer of the queue: p50, p95, p99", runPropagation},
		{"latency", "from acceptance to each sink, at low and at moderate rates, taken apart into stages by traces", runLatency},
		{"tracing", "what tracing costs with 0, 1 and 100 % of the events traced, and off, in turn: CPU of each process, rate", runTracing},
		{"embedded", "an emitter in this process: 10, 100 and 1,000 callers, 256 B and 1 KB, an endpoint that answers after 0 and 50 ms, 100,000 events one by one; and the drain after an outage (one load: --part outage --runs 1)", runEmbedded},
		{"outbox", "events emitted in transactions of their callers: commit → a consumer of the queue and the endpoint, rate at saturation, what it adds to a transaction, what NOTIFY costs", runOutbox},
		{"replay", "200,000 events read back from the stream and from the archive, in turn: rates, each event once, the live path as it was", runReplay},
		{"s3", "an S3 server alone: PUTs by size and writers, events of an object and what they cost, LIST and GET, consistency, doubles under redelivery; own server, or --s3-endpoint", runS3},
		{"trace-file", "the arrival pattern of a CSV file (time, key, size) at its own times, for --trace FILE and --speed N; without a file a sample of 20 s", runTraceFile},
		{"heads", "16 writers race for the head row of one key, then of 10,000: forks and gaps (none), waits, rate", runHeads},
		{"statements", "each SQL statement of the store alone, with 10,000 and 1 million rows (--pending), with stale and with fresh statistics", runStatements},
		{"store", "the tables under churn with 10,000 to 1 million events waiting (--pending): HOT, size, vacuum, fillfactor, sleepers, a held-open transaction; --for is the time of all parts, once; what is compared takes --runs times as long", runStore},
		{"quick", "under two minutes, correctness first: for CI and for comparing two commits", runQuick},
		{"targets", "the project's targets, a line each, in under eight minutes; exit status 1 when one is short", runTargets},
	}
}

// Find returns the scenario of a name.
func Find(name string) (Scenario, error) {
	for _, s := range Scenarios() {
		if s.Name == name {
			return s, nil
		}
	}
	return Scenario{}, fmt.Errorf("scenario %q: there is none; want one of %s", name, strings.Join(Names(), ", "))
}

// Names are those of the scenarios.
func Names() []string {
	var names []string
	for _, s := range Scenarios() {
		names = append(names, s.Name)
	}
	return names
}

// Bench is one run of a scenario.
type Bench struct {
	config   Config
	scenario Scenario
	report   *Report
}

// gcPercent lets the benchmark's own process, which is next to the measured ones, collect
// garbage less often.
const gcPercent = 400

// ErrShort means that everything was measured and something is not as it should be: the
// report says what.
var ErrShort = errors.New("the run is not OK")

// Run runs a scenario and writes its report. The error is ErrShort when a target was not
// reached or an event is lost or doubled, and another when something could not be measured; the
// report is written all the same.
func Run(ctx context.Context, config Config, scenario Scenario) (*Report, error) {
	if err := scenario.Check(config); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(config.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("directory of the report: %w", err)
	}
	defer debug.SetGCPercent(debug.SetGCPercent(gcPercent))
	b := &Bench{config: config, scenario: scenario}
	b.report = newReport(scenario, config)
	err := scenario.Run(ctx, b)
	b.report.finish(err)
	if writeErr := b.report.Write(config.Dir); writeErr != nil {
		return b.report, errors.Join(err, writeErr)
	}
	config.Say("report: " + filepath.Join(config.Dir, "report.html"))
	if err == nil && !b.report.OK {
		err = b.report.short()
	}
	return b.report, err
}

// short is ErrShort, and why.
func (r *Report) short() error {
	var names []string
	for _, t := range r.Targets {
		if !t.OK {
			names = append(names, t.Name)
		}
	}
	if len(names) == 0 {
		return fmt.Errorf("%w: see correctness", ErrShort)
	}
	return fmt.Errorf("%w: short of %s", ErrShort, strings.Join(names, ", "))
}

// live shows what is happening.
func (b *Bench) live(line string) {
	if b.config.Live != nil {
		b.config.Live(line)
	}
}

// missing notes what cannot be measured.
func (b *Bench) missing(what string) {
	b.report.Missing = append(b.report.Missing, what)
	b.config.Say("not measured: " + what)
}

// warn notes what a reader must know.
func (b *Bench) warn(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	b.report.Notes = append(b.report.Notes, line)
	b.config.Say("note: " + line)
}

// figure adds a figure to the report, and says it.
func (b *Bench) figure(kind Kind, name string, value float64, unit string) {
	b.quietFigure(kind, name, value, unit)
	b.config.Say(fmt.Sprintf("%s: %s %s", name, formatValue(value), unit))
}

// quietFigure adds a figure to the report.
func (b *Bench) quietFigure(kind Kind, name string, value float64, unit string) {
	b.report.Figures = append(b.report.Figures, Figure{Name: name, Value: value, Unit: unit, Kind: kind})
}

// with starts a system, lets f use it, and checks and stops it.
func (b *Bench) with(ctx context.Context, name string, change changeStack, f func(s *System) error) error {
	s, err := b.Start(ctx, name, change)
	if err != nil {
		return err
	}
	if err := f(s); err != nil {
		return errors.Join(err, s.stop())
	}
	return s.Close(ctx)
}

func sortedKeys[M ~map[K]V, K cmp.Ordered, V any](m M) []K { return slices.Sorted(maps.Keys(m)) }

// standard is a stage with 200 keys and 256-byte events in calls of 100.
func standard(name string) Load {
	return Load{Name: name, Transport: overGRPC, Bytes: 256, Events: 100, Keys: 200, Connections: 8, WarmUp: 3 * time.Second, For: 10 * time.Second}
}
