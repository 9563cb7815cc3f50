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
	m := &storeMeasure{bench: b, length: partLength(total, parts)}
	m.table = b.table(Table{
		Name: "store", Title: "The tables under churn", Columns: storeColumns,
		Note: fmt.Sprintf("Each part %v. Ingests append flushes, and a janitor settles as many batches as were appended, the oldest first. "+
			"Half and end are sizes at those times of the part; a turnover replaces all that waits once.", m.length.Round(time.Second)),
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
		for i, part := range parts {
			err := d.with(ctx, fmt.Sprintf("store_%d", i), func(url string) error { return m.part(ctx, url, part) })
			if err != nil {
				return fmt.Errorf("%s: %w", part.name, err)
			}
		}
		return nil
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
	lost        []float64 // with a transaction that was held open
	sized, held bool      // whether there were parts for these
}

// part measures one part on a database of its own.
func (m *storeMeasure) part(ctx context.Context, url string, part storePart) (err error) {
	b := m.bench
	b.live(part.name)
	probe, err := newTableProbe(ctx, url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, probe.conn.Close(ctx)) }()
	if why := "leaf density, fragmentation and free space: "; !probe.pgstattuple && !slices.Contains(b.report.Missing, why+firstLine(probe.why)) {
		b.missing(why + firstLine(probe.why))
	}
	load := storeLoad(b.config.Settings, part)
	r := &storeRun{part: part, length: time.Duration(part.weight * float64(m.length)), probe: probe, timeline: m.timeline, cpu: m.cpu}
	if err := r.prepare(ctx, probe.conn, load); err != nil {
		return err
	}
	if r.churn, err = newChurn(ctx, url, r.load); err != nil {
		return err
	}
	phases, err := r.measure(ctx, url)
	r.churn.close()
	if err != nil {
		return err
	}
	if err := awaitSessions(ctx, probe.conn); err != nil {
		return err
	}
	r.readIndexes, r.ended = true, true
	if err := r.look(ctx); err != nil {
		return err
	}
	verdict, err := r.churn.verdict(ctx, url, part.name, r.fillEvents)
	if err != nil {
		return err
	}
	b.report.Correctness = append(b.report.Correctness, verdict)
	b.config.Say("correctness: " + verdict.String())
	return m.report(ctx, r, phases)
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

// keptUp warns of a part that was slower than its rate.
func (m *storeMeasure) keptUp(r *storeRun, phases []phase) {
	for _, p := range phases {
		if p.rate < keptUpShare*r.load.rate {
			m.bench.warn("%s: %.0f events/s were appended, and %.0f offered: its sizes are not like those of the others", r.part.name, p.rate, r.load.rate)
		}
	}
}

// report makes figures of a part.
func (m *storeMeasure) report(ctx context.Context, r *storeRun, phases []phase) error {
	m.keptUp(r, phases)
	points := m.timeline.of(r.part.name)
	row := summarise(r.part.name, points, int(r.fillEvents), phases[0])
	if free, known, err := r.probe.freeSpace(ctx, "batches"); err != nil {
		return err
	} else if known {
		row.Values["free space of batches"] = free
	}
	if n := r.churn.failures.Load(); n > 0 {
		row.Remark = fmt.Sprintf("%d transactions were tried again", n)
	}
	if err := r.rebuild(ctx, &row, points); err != nil {
		return err
	}
	m.bench.add(m.table, row)
	if r.part.sleepers > 0 {
		m.bench.figure(Shape, r.part.name+": batches that stayed", float64(r.churn.sleeping.Load()), "batches")
	}
	if r.part.held {
		m.held = true
		m.reportHeld(phases)
	}
	if r.part.group != "pending" {
		return nil
	}
	m.noteSizes(row)
	m.xidAge(row)
	return nil
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

// reportHeld compares what came before a transaction was held open, meanwhile and after.
func (m *storeMeasure) reportHeld(phases []phase) {
	before, meanwhile := phases[0], phases[1]
	m.lost = append(m.lost, 100*(1-meanwhile.rate/before.rate))
	for i, when := range []string{"before", fmt.Sprintf("meanwhile, %v", m.length.Round(time.Second)), "after"} {
		m.bench.figure(Absolute, "held-open transaction: "+when, phases[i].rate, "events/s")
		if phases[i].cpu > 0 {
			m.bench.figure(Absolute, "held-open transaction: CPU of Postgres, "+when, phases[i].cpu, "µs/event")
		}
	}
	if before.cpu > 0 {
		m.bench.figure(Shape, "held-open transaction: CPU of Postgres an event, meanwhile by before", meanwhile.cpu/before.cpu, "ratio")
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
