package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/internal/procstat"
	"github.com/waybillhq/waybill/internal/roundtrip"
)

// measurement is one run of the isolation mode.
type measurement struct {
	isolation
	system *system
	load   *load
	out    io.Writer

	received int64         // records of the endpoint that were read
	archived map[int]int64 // offsets that the archive was read up to, by lane
	highest  map[string]float64
}

// phase is a time of load and what became of its events.
type phase struct {
	first, past int // calls
	// The measured part.
	from, to time.Time
	up       time.Time // when the sink was back; zero in a phase without a fault
	cpu      map[string]float64
	taken    map[string]*taken // by sink
}

// taken is what a sink took of a phase.
type taken struct {
	at      []time.Time // by event: calls × callEvents; zero: not
	doubles int
}

func (m *measurement) say(format string, args ...any) {
	_, _ = fmt.Fprintf(m.out, time.Now().UTC().Format("15:04:05 ")+format+"\n", args...) // progress
}

func (m *measurement) run(ctx context.Context) (*isolationResult, error) {
	var err error
	if m.load, err = newLoad(m.system.stack.GRPC); err != nil {
		return nil, err
	}
	defer m.load.close()
	for _, p := range m.system.stack.Parts() {
		m.say("  %-12s process %d, %s", p.Name, p.PID, p.Where)
	}
	m.archived, m.highest = map[int]int64{}, map[string]float64{}
	if err := m.peakRate(ctx); err != nil {
		return nil, err
	}
	r := &isolationResult{Down: m.down, Measured: m.isolation.up(), Rate: m.rate, Seconds: m.length.Seconds(), Peak: m.highest}
	for i := range m.pairs {
		p, err := m.pair(ctx, i)
		if err != nil {
			return nil, err
		}
		r.Pairs = append(r.Pairs, p)
		m.say("pair %d: %v", i+1, p)
	}
	if err := m.system.untilPostgres(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `SELECT count(*) FROM public.retransmits`).Scan(&r.Retransmits)
	}); err != nil {
		return nil, err
	}
	return r, nil
}

// pair measures without and with the fault; every other pair in the opposite order.
func (m *measurement) pair(ctx context.Context, nth int) (*isolationPair, error) {
	var well, ill *phase
	for i := range 2 {
		var err error
		if (i+nth)%2 == 0 {
			well, err = m.well(ctx)
		} else {
			ill, err = m.ill(ctx)
		}
		if err != nil {
			return nil, err
		}
	}
	return m.compare(well, ill), nil
}

// peakRate finds the highest rate at which the sinks take events, with all well.
func (m *measurement) peakRate(ctx context.Context) error {
	p, stop, stopped := m.begin(ctx, m.load.most)
	sleep(ctx, m.peak)
	p.to = time.Now()
	close(stop)
	<-stopped
	p.from = p.from.Add(m.peak / 4)
	if err := m.end(ctx, p); err != nil {
		return err
	}
	for sink, t := range p.taken {
		m.highest[sink] = t.rate(p.from, p.to)
		m.say("the highest rate of %s: %.0f events/s", sink, m.highest[sink])
	}
	return nil
}

// well measures with all well.
func (m *measurement) well(ctx context.Context) (*phase, error) {
	p, stop, stopped := m.begin(ctx, m.steadily)
	m.measure(ctx, p)
	close(stop)
	<-stopped
	return p, m.end(ctx, p)
}

// ill measures with one sink away, and goes on until it has caught up.
func (m *measurement) ill(ctx context.Context) (*phase, error) {
	outage := m.outage(m.system)
	if err := outage.inject(ctx); err != nil {
		return nil, err
	}
	p, stop, stopped := m.begin(ctx, m.steadily)
	m.measure(ctx, p)
	p.up = time.Now()
	err := outage.heal(ctx)
	if err == nil {
		err = m.untilCaughtUp(ctx)
	}
	close(stop)
	<-stopped
	if err != nil {
		return nil, err
	}
	return p, m.end(ctx, p)
}

func (m *measurement) steadily(ctx context.Context, stop <-chan struct{}) {
	m.load.steady(ctx, m.rate, stop)
}

// begin puts load on.
func (m *measurement) begin(ctx context.Context, load func(context.Context, <-chan struct{})) (p *phase, stop, stopped chan struct{}) {
	p = &phase{first: m.load.made(), from: time.Now()}
	stop, stopped = make(chan struct{}), make(chan struct{})
	go func() { defer close(stopped); load(ctx, stop) }()
	return p, stop, stopped
}

// measure lets the load go on for its time.
func (m *measurement) measure(ctx context.Context, p *phase) {
	sleep(ctx, m.settle)
	before := m.cpu()
	p.from = time.Now()
	sleep(ctx, m.length-m.settle)
	p.to = time.Now()
	p.cpu = map[string]float64{}
	for name, seconds := range m.cpu() {
		p.cpu[name] = (seconds - before[name]) / p.to.Sub(p.from).Seconds()
	}
}

// end waits until every sink has everything, and reads what they have.
func (m *measurement) end(ctx context.Context, p *phase) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if m.load.err != nil {
		return m.load.err
	}
	p.past = m.load.made()
	if err := m.untilWaiting(ctx, m.length+time.Minute, "everything is settled", `SELECT count(*) FROM waybill.batches`); err != nil {
		return err
	}
	p.taken = map[string]*taken{}
	for sink, read := range map[string]func(context.Context, func(id string, at time.Time) error) error{
		ingressSink: m.readEndpoint, archiveSink: m.readArchive,
	} {
		t := &taken{at: make([]time.Time, (p.past-p.first)*callEvents)}
		if err := read(ctx, func(id string, at time.Time) error { return p.take(t, id, at) }); err != nil {
			return fmt.Errorf("read %s: %w", sink, err)
		}
		if lacks := slices.IndexFunc(t.at, time.Time.IsZero); lacks >= 0 {
			return fmt.Errorf("event %d of the phase is accepted and not in %s, although all is settled", lacks, sink)
		}
		p.taken[sink] = t
	}
	return nil
}

func (p *phase) take(t *taken, id string, at time.Time) error {
	call, index, err := parseEventID(id)
	if err != nil {
		return err
	}
	if call < p.first || call >= p.past {
		return fmt.Errorf("event %s is not of this phase", id)
	}
	slot := &t.at[(call-p.first)*callEvents+index]
	if !slot.IsZero() {
		t.doubles++
		return nil
	}
	*slot = at
	return nil
}

// untilCaughtUp returns when only what was accepted a moment ago waits for the sink.
func (m *measurement) untilCaughtUp(ctx context.Context) error {
	return m.untilWaiting(ctx, m.length+time.Minute, m.down+" has caught up", fmt.Sprintf(`
		SELECT count(*) FROM waybill.batches
		WHERE '%s' = ANY (waiting_for) AND accepted_at < now() - interval '2 seconds'`, m.down))
}

// untilWaiting polls until the statement counts nothing.
func (m *measurement) untilWaiting(ctx context.Context, limit time.Duration, what, sql string) error {
	conn, err := pgx.Connect(ctx, m.system.stack.DatabaseURL)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }() // it only reads
	return poll(ctx, limit, what, func(ctx context.Context) error {
		var n int
		err := conn.QueryRow(ctx, sql).Scan(&n)
		if err == nil && n > 0 {
			sleep(ctx, 200*time.Millisecond)
			err = fmt.Errorf("%d batches wait", n)
		}
		return err
	})
}

// readEndpoint visits the events that the endpoint took since the last time.
func (m *measurement) readEndpoint(ctx context.Context, visit func(id string, at time.Time) error) error {
	for d, err := range roundtrip.EndpointDeliveries(ctx, m.system.stack.EndpointAdmin, m.received) {
		if err != nil {
			return err
		}
		m.received++
		if err := visit(d.ID, d.At); err != nil {
			return err
		}
	}
	return nil
}

// readArchive visits the events that were archived since the last time. Their time is when
// the S3 server wrote the object's file: a listing gives whole seconds only.
func (m *measurement) readArchive(ctx context.Context, visit func(id string, at time.Time) error) error {
	reader, err := m.system.stack.S3.ArchiveReader(ctx)
	if err != nil {
		return err
	}
	times, err := m.objectTimes()
	if err != nil {
		return err
	}
	for d, err := range roundtrip.ArchiveDeliveries(ctx, reader, m.archived) {
		if err != nil {
			return err
		}
		lane := times[d.Lane]
		i, exact := slices.BinarySearchFunc(lane, d.Offset, func(o objectTime, offset int64) int { return int(o.first - offset) })
		if !exact {
			i--
		}
		if i < 0 {
			return fmt.Errorf("no object of lane %d has offset %d", d.Lane, d.Offset)
		}
		m.archived[d.Lane] = d.Offset + 1
		if err := visit(d.ID, lane[i].at); err != nil {
			return err
		}
	}
	return nil
}

// objectTime is when the object was written that begins with an offset.
type objectTime struct {
	first int64
	at    time.Time
}

// objectTimes are those of each lane's objects, in order.
func (m *measurement) objectTimes() (map[int][]objectTime, error) {
	s3 := m.system.stack.S3
	root := filepath.Join(m.system.dir, "s3", "objects", s3.S3Bucket, s3.S3Prefix)
	files, err := filepath.Glob(filepath.Join(root, "lane=*", "*.ndjson.zst"))
	if err != nil {
		return nil, fmt.Errorf("objects of the archive: %w", err)
	}
	times := map[int][]objectTime{}
	for _, file := range files { // in order
		info, err := os.Stat(file)
		if err != nil {
			return nil, fmt.Errorf("object of the archive: %w", err)
		}
		lane, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(filepath.Dir(file)), "lane="))
		first, err2 := strconv.ParseInt(strings.TrimSuffix(filepath.Base(file), ".ndjson.zst"), 10, 64)
		if err := errors.Join(err, err2); err != nil {
			return nil, fmt.Errorf("object of the archive: %w", err)
		}
		times[lane] = append(times[lane], objectTime{first, info.ModTime()})
	}
	return times, nil
}

// cpu is the time, in seconds, that each part has used.
func (m *measurement) cpu() map[string]float64 {
	out := map[string]float64{"measurement": cpuSeconds(procstat.CPU, os.Getpid())}
	for _, p := range m.system.stack.Parts() {
		read := procstat.CPU
		if p.Name == "postgres" {
			read = procstat.TreeCPU
		}
		out[p.Name] = cpuSeconds(read, p.PID)
	}
	return out
}

// cpuSeconds is what a process used; 0 where it has ended.
func cpuSeconds(read func(pid int) (time.Duration, error), pid int) float64 {
	used, err := read(pid)
	if err != nil {
		return 0
	}
	return used.Seconds()
}

// keepLogs copies the logs to the directory of the results.
func (m *measurement) keepLogs() error {
	dir := filepath.Join(m.isolation.out, "isolation-"+m.down)
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("keep the logs: %w", err)
	}
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(m.system.dir, "logs"))); err != nil {
		return fmt.Errorf("keep the logs: %w", err)
	}
	return nil
}
