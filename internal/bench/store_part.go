package bench

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/pipeline"
)

// storePart is the tables under one kind of churn.
type storePart struct {
	// group is what it is compared with.
	group, name string
	// pending events wait at the beginning, and all the time.
	pending int
	// weight is its part of the time; where a transaction is held open, before, meanwhile and
	// after take so long each.
	weight float64
	// options are those of the tables batches and events, as in ALTER TABLE … SET; batches are
	// those of batches alone.
	options, batches string
	sleepers         float64
	held             bool
}

const (
	// sizesGroup is the parts that differ in how many events wait. They are not compared.
	sizesGroup = "pending"
	// storeLength is how long all parts take together, once each, unless --for says so.
	storeLength = 4 * time.Minute
	// sweepPending is how many events wait where something else is varied.
	sweepPending = 100_000
	// A part has so many looks at the tables, and autovacuum looks for work so often in it. Both
	// have bounds.
	partLooks, partVacuums = 40, 10
	leastLook, mostLook    = 250 * time.Millisecond, time.Minute
	defaultNaptime         = time.Minute // Postgres's own
)

// storeParts are the parts that are wanted, in the order in which they are measured.
func storeParts(s Settings) ([]storePart, error) {
	return wantedParts(s, allStoreParts(s), func(p storePart) string { return p.group + ": " + p.name })
}

func allStoreParts(s Settings) []storePart {
	sizes, sweep := []int{10_000, 100_000, 1_000_000}, sweepPending
	if s.Pending != nil {
		sizes, sweep = []int{*s.Pending}, *s.Pending
	}
	var out []storePart
	for _, n := range sizes {
		out = append(out, storePart{group: sizesGroup, name: fmt.Sprintf("%d pending", n), pending: n, weight: 1})
	}
	for _, percent := range []int{50, 70, 80, 90, 100} {
		out = append(out, storePart{
			group: "fillfactor of batches", name: fmt.Sprintf("fillfactor %d", percent), pending: sweep, weight: 1,
			batches: fmt.Sprintf("fillfactor = %d", percent),
		})
	}
	for _, v := range []struct{ name, options string }{
		{"as set by the store", ""},
		{"scale factor 0.01", "autovacuum_vacuum_scale_factor = 0.01"},
		{"scale factor 0.2", "autovacuum_vacuum_scale_factor = 0.2"},
		{"Postgres's defaults", "autovacuum_vacuum_scale_factor = 0.2, autovacuum_vacuum_cost_delay = 2"},
	} {
		out = append(out, storePart{group: "autovacuum", name: "autovacuum " + v.name, pending: sweep, weight: 1, options: v.options})
	}
	return append(
		out,
		storePart{group: "sleepers", name: "no sleepers", pending: sweep, weight: 1},
		storePart{group: "sleepers", name: "2 % sleepers", pending: sweep, weight: 1, sleepers: 0.02},
		storePart{group: "held-open transaction", name: "held-open transaction", pending: sweep, weight: 1, held: true},
	)
}

// partLength is how long a part of weight 1 lasts.
func partLength(total time.Duration, parts []storePart) time.Duration {
	sum := 0.0
	for _, p := range parts {
		sum += p.weight
		if p.held {
			sum += 2 * p.weight
		}
	}
	return time.Duration(float64(total) / sum)
}

// naptime is the pause of autovacuum in a part: its default, unless too few would fall into the part.
func naptime(length time.Duration) time.Duration {
	return min(max((length/partVacuums).Truncate(time.Second), time.Second), defaultNaptime)
}

// storeRun is a part while it is measured.
type storeRun struct {
	part     storePart
	load     churnLoad
	length   time.Duration
	churn    *churn
	probe    *tableProbe
	timeline *Timeline
	began    time.Time
	// before is the newest point, for rates.
	before      TimelinePoint
	appended    int64
	fillEvents  int64 // in the tables before
	readIndexes bool  // at the next look
	ended       bool  // nothing is appended any more
	// cpu is what Postgres has used; nil: it is not known.
	cpu func() (time.Duration, error)
}

// phase is one length of a part.
type phase struct {
	rate float64 // events/s
	cpu  float64 // of Postgres, microseconds an event; 0: not known
}

// prepare sets the tables' options and lets events wait.
func (r *storeRun) prepare(ctx context.Context, conn *pgx.Conn, load churnLoad) error {
	for table, options := range map[string]string{
		"batches": strings.Join(nonEmpty(r.part.options, r.part.batches), ", "), "events": r.part.options,
	} {
		if options == "" {
			continue
		}
		if err := execAll(ctx, conn, "options of "+table, "ALTER TABLE waybill."+table+" SET ("+options+")"); err != nil {
			return err
		}
	}
	r.load = load
	perBatch := max(1, load.events/pipeline.DefaultLanes)
	batches := max(1, r.part.pending/perBatch)
	e, err := newEvent("00000000", 0, []byte(strings.Repeat("x", load.bytes)), false)
	if err != nil {
		return err
	}
	// What the endpoint has taken already, and the archive has not.
	_, err = conn.Exec(ctx, `
		INSERT INTO waybill.batches (batch, token, lane, events, bytes, expires_at, waiting_for)
		SELECT i, i, i % $2::bigint, $3::smallint, $3::bigint * $4::bigint, now() + interval '7 days', '{archive}' FROM generate_series(1, $1::bigint) AS i`,
		batches, pipeline.DefaultLanes, perBatch, len(e.encoded))
	if err != nil {
		return fmt.Errorf("let batches wait: %w", err)
	}
	_, err = conn.Exec(ctx, `
		INSERT INTO waybill.events SELECT i << 12 | j, $3::text, $4::text, 'id', 1, $5::bytea FROM generate_series(1, $1::bigint) AS i, generate_series(0, $2::bigint - 1) AS j`,
		batches, perBatch, e.source, e.typ, e.encoded)
	if err != nil {
		return fmt.Errorf("let events wait: %w", err)
	}
	if _, err := conn.Exec(ctx, `SELECT setval('waybill.batch_numbers', $1)`, batches); err != nil {
		return fmt.Errorf("set the batch numbers: %w", err)
	}
	for i := range batches {
		r.load.pending = append(r.load.pending, pipeline.BatchID{Number: int64(i + 1), Token: uint64(i + 1)})
	}
	r.load.sleepers, r.fillEvents = r.part.sleepers, int64(batches*perBatch)
	return execAll(ctx, conn, "vacuum", "VACUUM (ANALYZE) waybill.batches, waybill.events")
}

func nonEmpty(values ...string) []string {
	var out []string
	for _, v := range values {
		if v != "" {
			out = append(out, v)
		}
	}
	return out
}

// measure lets the churn go on for the part's length, or three times that where a transaction is held
// open in the middle. It returns the events/s of each length.
func (r *storeRun) measure(ctx context.Context, url string) (phases []phase, err error) {
	running, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	r.began = time.Now()
	r.readIndexes = true
	if err := r.look(ctx); err != nil {
		return nil, err
	}
	go func() { ended <- r.churn.run(running) }()
	lengths := 1
	if r.part.held {
		lengths = 3
	}
	for n := range lengths {
		p, err := r.phase(running, url, n, ended)
		if err != nil {
			return nil, err
		}
		phases = append(phases, p)
	}
	close(r.churn.stop)
	return phases, <-ended
}

// phase is one length of the churn, the second of them with a transaction that is held open.
func (r *storeRun) phase(ctx context.Context, url string, n int, ended <-chan error) (phase, error) {
	if n == 1 {
		conn, err := connectTo(ctx, url)
		if err != nil {
			return phase{}, err
		}
		defer func() { _ = conn.Close(ctx) }() // which ends its transaction
		// Its snapshot keeps every version of a row from then on.
		if err := execAll(ctx, conn, "hold a transaction open", "BEGIN ISOLATION LEVEL REPEATABLE READ", "SELECT FROM waybill.sinks"); err != nil {
			return phase{}, err
		}
	}
	began, before := time.Now(), r.churn.appended.Load()
	usedBefore, err := r.used()
	if err != nil {
		return phase{}, err
	}
	end := began.Add(r.length)
	every := min(max(r.length/partLooks, leastLook), mostLook)
	for time.Now().Before(end) {
		timer := time.NewTimer(min(every, time.Until(end)))
		select {
		case <-timer.C:
		case err := <-ended:
			timer.Stop()
			return phase{}, errors.Join(err, ctx.Err(), errors.New("the churn ended before its time"))
		}
		if err := r.look(ctx); err != nil {
			return phase{}, err
		}
	}
	used, err := r.used()
	if err != nil {
		return phase{}, err
	}
	events := float64(r.churn.appended.Load() - before)
	return phase{events / time.Since(began).Seconds(), float64((used - usedBefore).Microseconds()) / max(events, 1)}, nil
}

// used is the CPU time of Postgres, where it is known.
func (r *storeRun) used() (time.Duration, error) {
	if r.cpu == nil {
		return 0, nil
	}
	return r.cpu()
}

// look adds a point to the timeline.
func (r *storeRun) look(ctx context.Context) error {
	values, err := r.probe.look(ctx, r.readIndexes)
	if err != nil {
		return err
	}
	r.readIndexes = false
	now, appended := time.Since(r.began).Seconds(), r.churn.appended.Load()
	if passed := now - r.before.Seconds; passed > 0 && r.before.Values != nil && !r.ended {
		values["events"] = float64(appended-r.appended) / passed
	}
	values["settled"], values["survey"] = float64(r.churn.settled.Load()), float64(r.churn.surveying.Load())/1e6
	r.appended = appended
	r.before = TimelinePoint{Group: r.part.group, Part: r.part.name, Seconds: now, Values: values}
	r.timeline.Points = append(r.timeline.Points, r.before)
	return nil
}
