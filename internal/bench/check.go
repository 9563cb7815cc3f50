package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/sinks"
)

const (
	// drainPoll is the pause between two looks at what waits.
	drainPoll = 50 * time.Millisecond
	// drainStuck is how long nothing may become less before waiting is given up: longer
	// than a lane needs to move to another forwarder, and a batch to be retransmitted.
	drainStuck = time.Minute
)

// drain waits until nothing waits for a sink any more, or nothing becomes less.
func (s *System) drain(ctx context.Context) error {
	if s.databaseURL == "" {
		return s.drainArrivals(ctx)
	}
	conn, err := s.postgres(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }() // it only reads
	var before int64
	progress := time.Now()
	for {
		var none bool
		if err := conn.QueryRow(ctx, `SELECT NOT EXISTS (SELECT FROM waybill.batches) AND NOT EXISTS (SELECT FROM waybill.outbox)`).Scan(&none); err != nil {
			return fmt.Errorf("look at what waits: %w", err)
		}
		if none {
			return nil
		}
		if now := s.prober.settledEvents(); now != before {
			before, progress = now, time.Now()
		}
		if time.Since(progress) > drainStuck {
			s.bench.warn("%s: events still wait after %v without progress", s.Name, drainStuck)
			return nil
		}
		pause(ctx, drainPoll)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// drainArrivals goes by what the endpoint takes, where nothing else can be seen.
func (s *System) drainArrivals(ctx context.Context) error {
	for before := int64(-1); s.receiver != nil && before != s.ledger.arrived.Load() && s.ledger.arrived.Load() < s.ledger.accepted.Load(); {
		before = s.ledger.arrived.Load()
		pause(ctx, 5*time.Second)
	}
	return ctx.Err()
}

// verdicts compares what was accepted with what the sinks have and what waits for them.
func (s *System) verdicts(ctx context.Context) ([]Verdict, error) {
	var out []Verdict
	retransmits := s.retransmits(ctx)
	sinks := []string{ingressSink}
	if s.stack == nil || s.stack.S3.S3Bucket != "" {
		sinks = append(sinks, archiveSink)
	}
	for _, sink := range sinks {
		why, err := s.look(ctx, sink)
		if err != nil {
			return out, fmt.Errorf("check what %s has: %w", sink, err)
		}
		v := Verdict{System: s.Name, Sink: sink, Unchecked: why}
		if why == "" {
			v = s.ledger.judge(s.Name, sink)
			v.Retransmits = retransmits
		}
		out = append(out, v)
	}
	return out, nil
}

// retransmits is how many events the janitors have published again; 0 where that is not known.
func (s *System) retransmits(ctx context.Context) int64 {
	if s.stack == nil {
		return 0
	}
	s.prober.mu.Lock() // the stack answers one at a time
	defer s.prober.mu.Unlock()
	return s.stack.Counters(ctx).Retransmits
}

// look marks what a sink has, and what waits for it. It returns why it cannot, if it cannot.
func (s *System) look(ctx context.Context, sink string) (why string, err error) {
	switch {
	case sink == ingressSink && s.receiver == nil:
		return "its deliveries go elsewhere", nil
	case sink == archiveSink && s.stack == nil:
		return "the archive of an existing system is not read", nil
	case sink == archiveSink:
		reader, err := s.stack.S3.ArchiveReader(ctx)
		if err != nil {
			return "", err
		}
		if err := s.ledger.readArchive(ctx, reader); err != nil {
			return "", err
		}
	}
	s.ledger.unmark(isPending | isDead)
	if s.databaseURL == "" {
		return "", nil
	}
	conn, err := s.postgres(ctx)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close(ctx) }() // it only reads
	_, pending := s.ledger.markRows(ctx, conn, isPending, `
		SELECT event_id FROM waybill.events JOIN waybill.batches ON batch = position >> 12
		WHERE $1 = ANY (waiting_for)`, sink)
	_, dead := s.ledger.markRows(ctx, conn, isDead, `SELECT event_id FROM waybill.dead_letters WHERE sink = $1`, sink)
	return "", errors.Join(pending, dead)
}

// markRows marks the events whose ids a query returns, and counts those that it returns again.
func (l *ledger) markRows(ctx context.Context, conn *pgx.Conn, mark uint32, sql string, args ...any) (again int64, err error) {
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return 0, fmt.Errorf("read what is in Postgres: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return 0, fmt.Errorf("read what is in Postgres: %w", err)
		}
		if event, ours := l.parseID([]byte(id)); ours && l.mark(event, mark) {
			again++
		}
	}
	return again, rows.Err()
}

// readArchive marks every event that the archive has, and counts those that it has twice.
func (l *ledger) readArchive(ctx context.Context, reader *sinks.ArchiveReader) error {
	lanes, err := reader.Lanes(ctx)
	if err != nil {
		return err
	}
	l.doubledArchive.Store(0)
	l.unmark(isArchived)
	for _, lane := range lanes {
		for record, err := range reader.Records(ctx, lane, 0) {
			if err != nil {
				return err
			}
			event, ours := l.parseID([]byte(record.ID))
			if ours && l.mark(event, isArchived) {
				l.doubledArchive.Add(1)
				l.fault("%s: event %s is there twice", archiveSink, record.ID)
			}
		}
	}
	return nil
}
