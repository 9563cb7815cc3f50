package main

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cloudevents/sdk-go/binding/format/protobuf/v2/pb"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/waybillhq/waybill/internal/roundtrip"
	"github.com/waybillhq/waybill/pipeline"
)

const (
	// outboxSessions emit at the same time, each the events of a key of its own, one transaction after another.
	outboxSessions = 8
	// outboxPause is between two transactions of a session.
	outboxPause = 200 * time.Millisecond
	// outboxHold is for how long one transaction in fifty stands open.
	outboxHold = 4 * time.Second
)

// outboxSources begin the sources of what is emitted.
const outboxSources = "/outbox/"

// losesTakers reports whether a fault of the run takes the session, and so its shards, from an ingest that goes on: what
// that has committed and not published yet may then come behind what the next taker publishes. Seqnums are in
// order all the same.
func (t *trial) losesTakers() bool {
	names := []string{t.under.name}
	for _, p := range t.steps {
		names = append(names, p.kind.name)
	}
	return slices.ContainsFunc(names, func(name string) bool {
		return strings.Contains(name, "postgres") || name == "pause-ingest-in-transaction"
	})
}

// outboxLoad emits by transactions, of which half are rolled back. It keeps what must become of each event. One
// transaction is open from the load's beginning to its end.
type outboxLoad struct {
	url  string
	name string // part of its events' sources and ids
	seed uint64

	mu         sync.Mutex // guards what follows
	entries    []roundtrip.Entry
	rolledBack int
	committed  int
}

// session is one caller: a connection, made again when it breaks, and the events of one key.
type outboxSession struct {
	*outboxLoad
	n      int
	random *rand.Rand
	conn   *pgx.Conn
	next   int
}

// run emits until stop is closed, and returns when each session's last transaction has ended.
func (l *outboxLoad) run(ctx context.Context, stop <-chan struct{}) {
	var wg sync.WaitGroup
	for n := range outboxSessions + 1 {
		s := &outboxSession{outboxLoad: l, n: n, random: rand.New(rand.NewPCG(l.seed, uint64(n)))}
		wg.Go(func() {
			defer s.close()
			if n == outboxSessions {
				s.emitAcross(ctx, stop)
				return
			}
			for !closed(stop) && ctx.Err() == nil {
				s.transaction(ctx)
				sleep(ctx, outboxPause)
			}
		})
	}
	wg.Wait()
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (s *outboxSession) close() {
	if s.conn != nil {
		_ = s.conn.Close(context.Background()) // what it did is done
	}
}

// draw makes the events of a transaction. Those that are to be rolled back have ids that are in no book: to
// see one anywhere is a violation.
func (s *outboxSession) draw(count int, commit bool) ([]pipeline.Event, []roundtrip.Entry) {
	var events []pipeline.Event
	var entries []roundtrip.Entry
	for range count {
		id := fmt.Sprintf("%s-%d-%06d", s.name, s.n, s.next)
		if !commit {
			id += "-rolled-back"
		}
		s.next++
		data := make([]byte, 100+s.random.IntN(2000))
		for i := range data {
			data[i] = byte(s.random.Uint32())
		}
		source := fmt.Sprintf("%s%s/%d", outboxSources, s.name, s.n)
		e, err := pipeline.NewEvent(&pb.CloudEvent{
			Source: source, Type: "outbox", Id: id, SpecVersion: "1.0", Data: &pb.CloudEvent_BinaryData{BinaryData: data},
		}, pipeline.DefaultMaxEventBytes)
		if err != nil {
			panic(err) // they are valid
		}
		events = append(events, e)
		entries = append(entries, roundtrip.Entry{
			Source: source, Type: "outbox", ID: id, DataCRC32C: crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)),
		})
	}
	return events, entries
}

// transaction emits the events of one transaction, again until it is known to be committed, or takes it back.
func (s *outboxSession) transaction(ctx context.Context) {
	commit := s.random.IntN(2) == 0
	hold := time.Duration(0)
	if s.random.IntN(50) == 0 {
		hold = outboxHold
	}
	events, entries := s.draw(1+s.random.IntN(10), commit)
	if !commit {
		if s.attempt(ctx, events, false, hold) == nil {
			s.add(nil, 1)
		}
		return
	}
	s.untilCommitted(ctx, events, entries, hold, 0)
}

// untilCommitted emits events until they are known to be committed; before that unknown tries may have been.
func (s *outboxSession) untilCommitted(ctx context.Context, events []pipeline.Event, entries []roundtrip.Entry, hold time.Duration, unknown int) {
	for ctx.Err() == nil {
		err := s.attempt(ctx, events, true, hold)
		if err == nil {
			break
		}
		if errors.Is(err, errMaybeCommitted) {
			unknown++
		}
		sleep(ctx, outboxPause)
	}
	for i := range entries {
		entries[i].Accepted, entries[i].Unknown, entries[i].Err = ctx.Err() == nil, unknown, ctx.Err()
	}
	s.add(entries, 0)
}

// emitAcross emits in a transaction that stays open until stop is closed.
func (s *outboxSession) emitAcross(ctx context.Context, stop <-chan struct{}) {
	events, entries := s.draw(3, true)
	var tx pgx.Tx
	for ctx.Err() == nil && !closed(stop) {
		var err error
		if err = s.connect(ctx); err == nil {
			if tx, err = s.conn.Begin(ctx); err == nil {
				err = pipeline.InsertOutbox(ctx, tx, events)
			}
		}
		if err == nil {
			break
		}
		s.close()
		s.conn = nil
		sleep(ctx, outboxPause)
	}
	select {
	case <-stop:
	case <-ctx.Done():
	}
	if tx == nil {
		return
	}
	err := tx.Commit(ctx)
	if err == nil {
		for i := range entries {
			entries[i].Accepted = true
		}
		s.add(entries, 0)
		return
	}
	s.close() // Postgres was restarted, or ended the session
	unknown := 0
	if maybeCommitted(err) {
		unknown = 1
	}
	s.untilCommitted(ctx, events, entries, 0, unknown)
}

var errMaybeCommitted = errors.New("it may be committed")

// maybeCommitted reports whether a COMMIT that ended with an error may have taken effect: Postgres did not say no.
func maybeCommitted(err error) bool {
	var answer *pgconn.PgError
	if errors.As(err, &answer) {
		return answer.SeverityUnlocalized != "ERROR"
	}
	return !errors.Is(err, pgx.ErrTxCommitRollback)
}

func (s *outboxSession) connect(ctx context.Context) (err error) {
	if s.conn != nil && !s.conn.IsClosed() {
		return nil
	}
	s.conn, err = pgx.Connect(ctx, s.url)
	return err
}

// attempt makes one transaction. Without commit an error is of no interest but that it was not rolled back by
// this program.
func (s *outboxSession) attempt(ctx context.Context, events []pipeline.Event, commit bool, hold time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, outboxHold+askTimeout)
	defer cancel()
	if err := s.connect(ctx); err != nil {
		return err
	}
	tx, err := s.conn.Begin(ctx)
	if err == nil {
		err = pipeline.InsertOutbox(ctx, tx, events)
	}
	if err != nil {
		s.close() // whatever is open ends with it
		return err
	}
	sleep(ctx, hold)
	if !commit {
		if err := tx.Rollback(ctx); err != nil {
			s.close()
			return err
		}
		return nil
	}
	if err := tx.Commit(ctx); err != nil {
		s.close()
		if maybeCommitted(err) {
			return fmt.Errorf("%w: %w", errMaybeCommitted, err)
		}
		return err
	}
	return nil
}

// add notes what became of a transaction.
func (l *outboxLoad) add(entries []roundtrip.Entry, rolledBack int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = append(l.entries, entries...)
	l.rolledBack += rolledBack
	if len(entries) > 0 {
		l.committed++
	}
}

// misplaced returns the events that a session emitted after one that has a higher seqnum, as a sink has them.
func (l *outboxLoad) misplaced(deliveries []roundtrip.Delivery) (wrong []string) {
	seqnums := map[string]int64{}
	for i := range deliveries {
		seqnums[deliveries[i].ID] = deliveries[i].Seqnum
	}
	last := map[string]int64{}
	for i := range l.entries { // of each session in the order in which it emitted
		e := &l.entries[i]
		n, there := seqnums[e.ID]
		if !there {
			continue // which the audit judges
		}
		if n < last[e.Source] {
			wrong = append(wrong, fmt.Sprintf("%s has the seqnum %d, and an event that was emitted before it %d", e.ID, n, last[e.Source]))
		}
		last[e.Source] = max(last[e.Source], n)
	}
	return wrong
}
