package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/waybillhq/waybill/internal/procstat"
)

// Target 10 of docs/performance.md: what the tables are to be like under churn.
var (
	hotTarget     = Target{Name: "10 HOT updates of batches", Limit: 99, Unit: "%", Kind: Shape}
	plateauTarget = Target{Name: "10 heap and index, growth of their peak", Most: true, Limit: levelGrowth, Unit: "%", Kind: Shape}
	heldTarget    = Target{Name: "10 throughput lost with a held-open transaction", Most: true, Limit: 10, Unit: "%", Kind: Shape}
)

// runStore measures the tables under churn.
func runStore(ctx context.Context, b *Bench) error {
	parts, err := storeParts(b.config.Settings)
	if err != nil {
		return err
	}
	total := storeLength
	set(&total, b.config.Settings.For)
	runs := b.config.Settings.runs()
	m := &storeMeasure{bench: b, length: partLength(total, parts)}
	m.table = b.table(Table{
		Name: "store", Title: "The tables under churn", Columns: storeColumns,
		Note: fmt.Sprintf("Each part %v, and what is compared %d times in turn: figures are medians of the runs, and the charts are of the first. "+
			"Ingests append flushes, and a janitor settles as many batches as were appended, the oldest first. "+
			"Half and end are sizes at those times of the part; a turnover replaces all that waits once.", m.length.Round(time.Second), runs),
	})
	m.timeline = newStoreTimeline()
	b.report.Timelines = append(b.report.Timelines, m.timeline)
	nap := naptime(m.length)
	if nap < defaultNaptime {
		b.warn("autovacuum looks for work every %v instead of every %v, so that it does so %d times in a part: heap sizes are smaller than with the default, "+
			"by what dies meanwhile; with --for %v or more the default is kept", nap, defaultNaptime, m.length/nap,
			time.Duration(float64(partVacuums*defaultNaptime)*float64(total)/float64(m.length)).Round(time.Minute))
	}
	settings := map[string]string{"autovacuum_naptime": fmt.Sprintf("%ds", int(nap.Seconds()))}
	err = b.withPostgres(ctx, settings, func(d *database) error {
		m.cpu = func() (time.Duration, error) { return procstat.TreeCPU(d.server.PID()) }
		// Autovacuum goes round all databases: those of earlier turns would take time from later ones.
		d.kept = 0
		return m.measure(ctx, storeGroups(parts, runs), func(ctx context.Context, turn storeTurn) (result storeResult, err error) {
			err = d.with(ctx, "store", func(url string) error {
				result, err = m.turn(ctx, url, turn)
				return err
			})
			return result, err
		})
	})
	if err == nil {
		m.judge()
	}
	return err
}

func newStoreTimeline() *Timeline {
	return &Timeline{
		Name: "store_series", Title: "The tables over time",
		Columns: append([]TimelineColumn{{"events", "events/s", Absolute}, {"settled", "events", ""}, {"survey", "ms", Absolute}}, tableColumns()...),
	}
}

// storeMeasure is what was measured so far.
type storeMeasure struct {
	bench    *Bench
	length   time.Duration
	cpu      func() (time.Duration, error) // of Postgres; nil: it is not known
	table    *Table
	timeline *Timeline

	hot, growth []float64 // of the parts whose name tells how many wait
	lost        []float64 // medians, with a transaction that was held open
	sized, held bool      // whether there were parts for these
}

// turn measures a part once, on a database of its own.
func (m *storeMeasure) turn(ctx context.Context, url string, turn storeTurn) (result storeResult, err error) {
	b, part := m.bench, turn.part
	probe, err := newTableProbe(ctx, url)
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, probe.conn.Close(ctx)) }()
	if why := "leaf density, fragmentation and free space: "; !probe.pgstattuple && !slices.Contains(b.report.Missing, why+firstLine(probe.why)) {
		b.missing(why + firstLine(probe.why))
	}
	timeline := m.timeline
	if turn.run > 0 { // the charts are of the first run
		timeline = newStoreTimeline()
	}
	load := storeLoad(b.config.Settings, part)
	r := &storeRun{part: part, length: time.Duration(part.weight * float64(m.length)), probe: probe, timeline: timeline, cpu: m.cpu}
	if err := r.prepare(ctx, probe.conn, load); err != nil {
		return result, err
	}
	if r.churn, err = newChurn(ctx, url, r.load); err != nil {
		return result, err
	}
	phases, err := r.measure(ctx, url)
	r.churn.close()
	if err != nil {
		return result, err
	}
	if err := awaitSessions(ctx, probe.conn); err != nil {
		return result, err
	}
	r.readIndexes, r.ended = true, true
	if err := r.look(ctx); err != nil {
		return result, err
	}
	verdict, err := r.churn.verdict(ctx, url, turn.name(), r.fillEvents)
	if err != nil {
		return result, err
	}
	b.report.Correctness = append(b.report.Correctness, verdict)
	b.config.Say("correctness: " + verdict.String())
	m.keptUp(turn.name(), r.load.rate, phases)
	return r.result(ctx, phases)
}

// storeLoad is what goes through the tables in a part.
func storeLoad(s Settings, part storePart) churnLoad {
	load := churnLoad{events: 100, keys: 200, bytes: 256, appenders: churnAppenders, rate: churnRate}
	set(&load.events, s.Events)
	set(&load.keys, s.Keys)
	set(&load.bytes, s.Bytes)
	if part.held {
		load.rate = 0 // the throughput is what is compared
	}
	set(&load.rate, s.Rate)
	if s.Callers != nil {
		load.rate, load.appenders = 0, *s.Callers
	}
	return load
}

// keptUp warns of a turn that was slower than its rate, events/s.
func (m *storeMeasure) keptUp(name string, rate float64, phases []phase) {
	for _, p := range phases {
		if p.rate < keptUpShare*rate {
			m.bench.warn("%s: %.0f events/s were appended, and %.0f offered: its sizes are not like those of the others", name, p.rate, rate)
		}
	}
}

// noteSizes keeps what target 10 asks of the tables.
func (m *storeMeasure) noteSizes(row TableRow) {
	m.sized = true
	if hot, known := row.Values[hotColumn]; known {
		m.hot = append(m.hot, hot)
	}
	if settledDown(row) {
		m.growth = append(m.growth, row.Values[growthColumn])
	}
}

// Postgres vacuums a table against wraparound when its xid age is this, unless it is set otherwise.
const freezeMaxAge = 200_000_000

// xidAge says how soon the tables' age would make Postgres freeze them.
func (m *storeMeasure) xidAge(row TableRow) {
	if row.Values["xids"] > 0 {
		m.bench.figure(Absolute, row.Name+": until a vacuum against wraparound", freezeMaxAge/row.Values["xids"]/3600, "h")
	}
}

// judge compares what was measured with target 10.
func (m *storeMeasure) judge() {
	worst := func(values []float64, of func([]float64) float64) (float64, error) {
		if len(values) == 0 {
			return 0, errors.New("not measured: give it more time with --for")
		}
		return of(values), nil
	}
	for _, j := range []struct {
		asked  bool
		target Target
		values []float64
		worst  func([]float64) float64
	}{
		{m.sized, hotTarget, m.hot, slices.Min[[]float64]},
		{m.sized, plateauTarget, m.growth, slices.Max[[]float64]},
		{m.held, heldTarget, m.lost, slices.Max[[]float64]},
	} {
		if !j.asked {
			continue
		}
		result := j.target.judge(worst(j.values, j.worst))
		m.bench.report.Targets = append(m.bench.report.Targets, result)
		m.bench.config.Say(result.String())
	}
}
