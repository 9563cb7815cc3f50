package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sync/errgroup"
)

const (
	// copyRows is how many rows a transaction of the limit copies: as many as a batch of
	// waybill.events may have.
	copyRows = 4096
	// limitSchema holds the tables of the limits, beside Waybill's own.
	limitSchema = `CREATE SCHEMA IF NOT EXISTS waybill_bench_limit`
	limitTable  = `CREATE TABLE IF NOT EXISTS waybill_bench_limit.events (LIKE waybill.events INCLUDING ALL)`
	limitCopy   = `COPY waybill_bench_limit.events (position, source, type, event_id, seqnum, event) FROM STDIN BINARY`
	limitDrop   = `DROP SCHEMA IF EXISTS waybill_bench_limit CASCADE`
)

// copyBody is copyRows rows in Postgres's binary COPY format, in which positions and ids
// can be replaced.
type copyBody struct {
	wire           []byte
	positions, ids []int
}

func newCopyBody(calls [][]event) *copyBody {
	b := &copyBody{wire: append([]byte("PGCOPY\n\xff\r\n\x00"), 0, 0, 0, 0, 0, 0, 0, 0)}
	field := func(v []byte) {
		b.wire = binary.BigEndian.AppendUint32(b.wire, uint32(len(v)))
		b.wire = append(b.wire, v...)
	}
	eight := func(v uint64) { field(binary.BigEndian.AppendUint64(nil, v)) }
	for i := range copyRows {
		call := calls[i/len(calls[0])%len(calls)]
		e := &call[i%len(call)]
		b.wire = binary.BigEndian.AppendUint16(b.wire, 6)
		b.positions = append(b.positions, len(b.wire)+4)
		eight(0)
		field([]byte(e.source))
		field([]byte(e.typ))
		b.ids = append(b.ids, len(b.wire)+4)
		field(make([]byte, eventIDBytes))
		eight(uint64(i + 1))
		field(e.encoded)
	}
	b.wire = binary.BigEndian.AppendUint16(b.wire, 0xffff)
	return b
}

func (b *copyBody) number(l *ledger, batch int64) {
	for i := range b.positions {
		binary.BigEndian.PutUint64(b.wire[b.positions[i]:], uint64(batch<<12|int64(i)))
		l.writeID(b.wire[b.ids[i]:b.ids[i]+eventIDBytes], batch<<12|int64(i))
	}
}

// copyConnections are tried; the fastest is the limit.
var copyConnections = []int{1, 2, 4}

// copyRate is how many rows/s, of the same content as a load's, COPY stores in a table like
// waybill.events, for length on each number of connections.
func (s *System) copyRate(ctx context.Context, load Load, length time.Duration) (best float64, err error) {
	calls, err := load.content().deal(s.ledger.run)
	if err != nil {
		return 0, err
	}
	conn, err := s.postgres(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close(ctx) }() // everything was answered
	for _, connections := range copyConnections {
		for _, sql := range []string{limitDrop, limitSchema, limitTable} {
			if _, err := conn.Exec(ctx, sql); err != nil {
				return 0, fmt.Errorf("limit of COPY: %w", err)
			}
		}
		rate, err := s.copyOn(ctx, connections, calls, length)
		if err != nil {
			return 0, fmt.Errorf("limit of COPY: %w", err)
		}
		best = max(best, rate)
	}
	_, err = conn.Exec(ctx, limitDrop)
	return best, err
}

func (s *System) copyOn(ctx context.Context, connections int, calls [][]event, length time.Duration) (float64, error) {
	var batch, rows atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	began := time.Now()
	for range connections {
		group.Go(func() (err error) {
			conn, err := s.postgres(ctx)
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close(ctx) }() // everything was answered
			body := newCopyBody(calls)
			for time.Since(began) < length {
				body.number(s.ledger, batch.Add(1))
				tag, err := conn.PgConn().CopyFrom(ctx, bytes.NewReader(body.wire), limitCopy)
				if err != nil {
					return err
				}
				rows.Add(tag.RowsAffected())
			}
			return nil
		})
	}
	err := group.Wait()
	return float64(rows.Load()) / time.Since(began).Seconds(), err
}

// commitLatency is how long one row takes to be committed by a statement of its own, on an
// idle system, with a pause before each: a machine that had nothing to do takes longer to
// begin. It counts from when the pause should be over, as an open loop's latency does, so that how
// late a timer wakes is in both.
func (s *System) commitLatency(ctx context.Context, rows int, idle time.Duration) (_ *hdrhistogram.Histogram, err error) {
	conn, err := s.postgres(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close(ctx) }() // everything was answered
	for _, sql := range []string{limitDrop, limitSchema, limitTable} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return nil, fmt.Errorf("limit of commits: %w", err)
		}
	}
	e, err := newEvent(s.ledger.run, 0, bytes.Repeat([]byte{'x'}, 256), false)
	if err != nil {
		return nil, err
	}
	h := newHistogram()
	for i := range rows {
		due := time.Now().Add(idle)
		pause(ctx, idle)
		_, err := conn.Exec(ctx, `INSERT INTO waybill_bench_limit.events (position, source, type, event_id, seqnum, event) VALUES ($1, $2, $3, $4, $5, $6)`,
			int64(i), e.source, e.typ, s.ledger.idOf(int64(i)), int64(i+1), e.encoded)
		if err != nil {
			return nil, fmt.Errorf("limit of commits: %w", err)
		}
		if i >= rows/10 { // the statement is prepared, and files are open
			recordInto(h, time.Since(due))
		}
	}
	_, err = conn.Exec(ctx, limitDrop)
	return h, errors.Join(err, ctx.Err())
}
