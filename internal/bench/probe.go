package bench

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/waybillhq/waybill/internal/procstat"
	"github.com/waybillhq/waybill/pipeline"
)

const (
	probeEvery = time.Second
	// probeTimeout bounds one look.
	probeTimeout = 10 * time.Second
	// surveyShare keeps surveys of a large backlog from loading the database: at most this
	// share of the time is spent on them.
	surveyShare = 10
	// self is the benchmark's own process, generator and receiving endpoint, among the others.
	self = "bench"
)

// Sample is what is known of a system at one moment. Counts are since its start; of what
// cannot be known there is no entry.
type Sample struct {
	At       time.Time `json:"at"`
	Stage    string    `json:"stage"` // and its part: warm-up, window or drain
	Offered  int64     `json:"offered"`
	Accepted int64     `json:"accepted"`
	// By sink: events that it took, events that wait for it in Postgres and the age of the
	// oldest in seconds, and the messages that JetStream holds for it: those that no
	// forwarder has, and those that one has and has not acknowledged.
	Delivered map[string]int64   `json:"delivered"`
	Pending   map[string]int64   `json:"pending"`
	OldestAge map[string]float64 `json:"oldest_age_s"`
	Queued    map[string]int64   `json:"queued"`

	CPU map[string]time.Duration `json:"cpu_ns"` // by process
	WAL int64                    `json:"wal_bytes"`
}

// prober looks at a system once a second.
type prober struct {
	system *System
	conn   *pgx.Conn // nil: no database is known
	stop   context.CancelFunc
	wg     sync.WaitGroup

	mu       sync.Mutex // guards what follows, and conn
	stage    string
	samples  []Sample
	counted  map[string]int64 // by sink, what the forwarders say that it took
	survey   survey           // the newest
	surveyed time.Time        // when the next survey may be made
	failures int              // looks that failed
	err      error            // the first of them
}

// survey is what waits in Postgres, by sink.
type survey struct {
	pending map[string]int64
	oldest  map[string]float64 // age, seconds
}

func startProber(ctx context.Context, s *System) (*prober, error) {
	p := &prober{system: s}
	if s.databaseURL != "" {
		var err error
		if p.conn, err = s.postgres(ctx); err != nil {
			return nil, err
		}
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	p.stop = stop
	p.wg.Go(func() { p.run(running) })
	return p, nil
}

func (p *prober) close() error {
	p.stop()
	p.wg.Wait()
	if p.failures > 0 {
		p.system.bench.warn("%s: %d probes failed, and their samples are missing; the first: %v", p.system.Name, p.failures, p.err)
	}
	if p.conn == nil {
		return nil
	}
	return p.conn.Close(context.Background())
}

func (p *prober) run(ctx context.Context) {
	ticker := time.NewTicker(probeEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		sample, err := p.look(ctx)
		if err != nil {
			p.fail(ctx, err)
			continue
		}
		p.mu.Lock()
		sample.Stage = p.stage
		p.samples = append(p.samples, sample)
		p.mu.Unlock()
		p.show(sample)
	}
}

// fail notes a look that failed, which on a machine with much else to do may happen.
func (p *prober) fail(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failures++; p.err == nil {
		p.err = err
	}
}

// enter names the stage that the coming samples are of.
func (p *prober) enter(stage string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stage = stage
}

// since returns the samples from a time on.
func (p *prober) since(from time.Time) []Sample {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []Sample
	for _, s := range p.samples {
		if !s.At.Before(from) {
			out = append(out, s)
		}
	}
	return out
}

// look asks everybody.
func (p *prober) look(ctx context.Context) (Sample, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.system.ledger
	s := Sample{At: time.Now(), Offered: l.reserved.Load(), Accepted: l.accepted.Load(), Delivered: map[string]int64{}}
	if p.system.stack != nil {
		p.counted = p.system.stack.Counters(ctx).Delivered
		maps.Copy(s.Delivered, p.counted)
	}
	var errs [3]error
	s.CPU, errs[0] = p.system.cpu()
	if p.system.databaseURL != "" {
		errs[1] = p.lookAtPostgres(ctx, &s)
	}
	if p.system.nats != nil {
		s.Queued, errs[2] = p.lookAtQueue(ctx)
	}
	if p.system.receiver != nil {
		s.Delivered[ingressSink] = l.arrived.Load() // exact, and sooner than the forwarders say so
	}
	return s, errors.Join(errs[:]...)
}

const (
	walSQL = `SELECT pg_current_wal_lsn() - '0/0'::pg_lsn`
	// The table of batches is small, but a backlog of lone events makes it large.
	surveySQL = `
		SELECT s.name, coalesce(sum(b.events), 0), coalesce(extract(epoch FROM now() - min(b.accepted_at)), 0)::float8
		FROM waybill.sinks s LEFT JOIN waybill.batches b ON s.name = ANY (b.waiting_for) GROUP BY s.name`
)

func (p *prober) lookAtPostgres(ctx context.Context, s *Sample) (err error) {
	if p.conn == nil || p.conn.IsClosed() { // a look that took too long has ended it
		if p.conn, err = p.system.postgres(ctx); err != nil {
			return err
		}
	}
	if err := p.conn.QueryRow(ctx, walSQL).Scan(&s.WAL); err != nil {
		return fmt.Errorf("position of the WAL: %w", err)
	}
	if began := time.Now(); began.After(p.surveyed) {
		if p.survey, err = p.readSurvey(ctx); err != nil {
			return fmt.Errorf("what waits in Postgres: %w", err)
		}
		p.surveyed = time.Now().Add((surveyShare - 1) * time.Since(began))
	}
	s.Pending, s.OldestAge = p.survey.pending, p.survey.oldest
	return nil
}

func (p *prober) readSurvey(ctx context.Context) (survey, error) {
	out := survey{map[string]int64{}, map[string]float64{}}
	rows, err := p.conn.Query(ctx, surveySQL)
	if err != nil {
		return out, err
	}
	defer rows.Close()
	for rows.Next() {
		var sink string
		var pending int64
		var oldest float64
		if err := rows.Scan(&sink, &pending, &oldest); err != nil {
			return out, err
		}
		out.pending[sink], out.oldest[sink] = pending, oldest
	}
	return out, rows.Err()
}

// lookAtQueue adds up the lanes' consumers, whose names are <sink>-<lane>.
func (p *prober) lookAtQueue(ctx context.Context) (map[string]int64, error) {
	js, err := jetstream.New(p.system.nats)
	if err != nil {
		return nil, fmt.Errorf("depth of the queue: %w", err)
	}
	stream, err := js.Stream(ctx, pipeline.EventsStream)
	if err != nil {
		return nil, fmt.Errorf("depth of the queue: %w", err)
	}
	queued := map[string]int64{}
	consumers := stream.ListConsumers(ctx)
	for info := range consumers.Info() {
		if at := strings.LastIndexByte(info.Name, '-'); at > 0 && info.Config.Durable != "" {
			queued[info.Name[:at]] += int64(info.NumPending) + int64(info.NumAckPending)
		}
	}
	if err := consumers.Err(); err != nil {
		return nil, fmt.Errorf("depth of the queue: %w", err)
	}
	return queued, nil
}

// cpu is what each process has used, this one included.
func (s *System) cpu() (map[string]time.Duration, error) {
	out := map[string]time.Duration{}
	own, err := procstat.CPU(os.Getpid())
	out[self] = own
	if s.stack == nil {
		return out, err
	}
	for _, part := range s.stack.Parts() {
		read := procstat.CPU
		if part.Name == "postgres" {
			read = procstat.TreeCPU
		}
		used, partErr := read(part.PID)
		if partErr != nil {
			err = errors.Join(err, partErr)
		}
		out[part.Name] = used
	}
	return out, err
}

// memory is the most that each process has had resident, in bytes.
func (s *System) memory() (map[string]int64, error) {
	if s.stack == nil {
		return nil, nil
	}
	out := map[string]int64{}
	for _, part := range s.stack.Parts() {
		m, err := procstat.ReadMemory(part.PID)
		if err != nil {
			return nil, err
		}
		out[part.Name] = m.Peak
	}
	return out, nil
}

// settledEvents counts what the sinks took, as of the newest look: it changes as long as
// there is progress.
func (p *prober) settledEvents() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	sum := p.system.ledger.arrived.Load()
	for _, n := range p.counted {
		sum += n
	}
	for _, n := range p.survey.pending {
		sum += n
	}
	return sum
}

// show tells what is happening in one line.
func (p *prober) show(now Sample) {
	p.mu.Lock()
	var before Sample
	if n := len(p.samples); n > 1 {
		before = p.samples[n-2]
	}
	p.mu.Unlock()
	if before.At.IsZero() {
		return
	}
	seconds := now.At.Sub(before.At).Seconds()
	line := fmt.Sprintf("%s: accepted %.0f/s", now.Stage, float64(now.Accepted-before.Accepted)/seconds)
	for _, sink := range sortedKeys(now.Delivered) {
		line += fmt.Sprintf(" · %s %.0f/s, %d pending", sink, float64(now.Delivered[sink]-before.Delivered[sink])/seconds, now.Pending[sink])
	}
	p.system.bench.live(line)
}
