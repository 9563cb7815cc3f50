package pipeline

import (
	"context"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/waybillhq/waybill/pipeline/failpoint"
)

var (
	//go:embed sql/append.sql
	appendSQL string
	//go:embed sql/append_events.sql
	appendEventsSQL string
	//go:embed sql/append_log.sql
	appendLogSQL string
	//go:embed sql/append_one_key.sql
	appendOneKeySQL string
	//go:embed sql/add_keys.sql
	addKeysSQL string
	//go:embed sql/repair_numbers.sql
	repairNumbersSQL string

	appendLarge = appendStatement{appendSQL, withParts(appendSQL, appendLogSQL)}
	appendSmall = appendStatement{
		withParts(appendSQL, appendEventsSQL),
		withParts(appendSQL, appendEventsSQL, strings.ReplaceAll(appendLogSQL, "$9", "$17")),
	}
	appendOneKey = appendStatement{appendOneKeySQL, withParts(appendOneKeySQL, appendLogSQL)}
)

// appendStatement moves the heads of a flush. logged does the same for a pipeline that
// remembers what it accepted: fingerprints are its last parameter.
type appendStatement struct{ plain, logged string }

// withParts returns an appending statement with further parts.
func withParts(sql string, parts ...string) string {
	return strings.Replace(sql, "/* stored */", "\n"+strings.Join(parts, "\n"), 1)
}

// smallFlush is the number of events up to which one statement beats COPY: COPY takes
// three round trips. smallFlushBytes bounds their encodings: a statement holds all of its
// parameters in memory, more than once, and COPY a few rows at a time.
const (
	smallFlush      = 64
	smallFlushBytes = 256 << 10
)

const copyEventsSQL = `COPY waybill.events (position, source, type, event_id, seqnum, event) FROM STDIN BINARY`

// appended is what a committed flush became.
type appended struct {
	batches []Batch
	bodies  [][]byte
}

// IDs names the batches, as a receipt does.
func (a *appended) IDs() []BatchID {
	ids := make([]BatchID, len(a.batches))
	for i := range a.batches {
		ids[i] = a.batches[i].ID
	}
	return ids
}

// counts returns when the flush was committed, by Postgres's clock, and how much it was.
func (a *appended) counts() (at time.Time, events, bytes int64) {
	for i := range a.batches {
		at = a.batches[i].QueuedAt
		events += int64(a.batches[i].count)
		bytes += int64(len(a.bodies[i]))
	}
	return at, events, bytes
}

// Append commits the events in one transaction and returns their batches as messages.
// ttl 0 means that they never expire. maxBatchBytes bounds a message body.
//
// The error is ErrUnavailable when nothing was stored and ErrOutcomeUnknown when that
// cannot be known. Events that Postgres itself finds unacceptable give an error that is
// neither of the two.
func (s *Store) Append(ctx context.Context, events []Event, ttl time.Duration, maxBatchBytes int) (*appended, error) {
	return s.appendWith(ctx, nil, events, ttl, maxBatchBytes)
}

// appendWith is Append. With a deduper, which must know none of the events, it fails with
// errServerChanged or errAcceptedBefore, and nothing was stored, where they may be stored already.
// The rows of the outbox in taken are deleted in the transaction; where others have taken one, it fails
// with errTakenElsewhere, and nothing was stored.
func (s *Store) appendWith(ctx context.Context, d *deduper, events []Event, ttl time.Duration, maxBatchBytes int, taken ...takenRows) (done *appended, err error) {
	defer s.metrics.time("append")(&err)
	f, err := newFlush(events, s.lanes, maxBatchBytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	f.taken = taken
	for mended := 0; ; mended++ {
		f.newKeys = s.keys.unknown(f.keys)
		meta, err := s.append(ctx, d, f, ttl)
		if err == nil {
			s.keys.add(f.newKeys)
			return f.appended(meta), nil
		}
		if !isKeyUnknown(err) && !isNumberTaken(err) {
			return nil, err
		}
		if mended == 2 { // each may be in the way once
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		if err := s.mend(ctx, f, err); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
}

// mend removes what was in the way of a flush, of which nothing was stored: a key that has no
// head, though it was known to have one, or batch numbers that a restore has set back.
func (s *Store) mend(ctx context.Context, f *flush, why error) error {
	if isKeyUnknown(why) {
		s.keys.forget(f.keys)
		return nil
	}
	if _, err := s.pool.Exec(ctx, repairNumbersSQL); err != nil {
		return fmt.Errorf("set the batch numbers past the stored ones: %w", err)
	}
	return nil
}

func (f *flush) appended(meta []batchMeta) *appended {
	out := &appended{batches: make([]Batch, len(f.batches)), bodies: make([][]byte, len(f.batches))}
	for i := range f.batches {
		b := &f.batches[i]
		out.bodies[i] = f.body(b)
		out.batches[i] = Batch{
			ID: BatchID{Number: b.number, Token: b.token}, Lane: b.lane,
			AcceptedAt: meta[i].queuedAt, QueuedAt: meta[i].queuedAt, ExpiresAt: meta[i].expiresAt,
			count: len(b.members), traced: f.traced(b),
		}
	}
	return out
}

type batchMeta struct{ queuedAt, expiresAt time.Time }

// append runs the transaction on one connection.
func (s *Store) append(ctx context.Context, d *deduper, f *flush, ttl time.Duration) ([]batchMeta, error) {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: connect to Postgres: %w", ErrUnavailable, err)
	}
	defer conn.Release()
	if f.isSmall() && d.mayGuard() {
		meta, err := appendAlone(ctx, conn.Conn(), d, f, ttl)
		if !refusedByGuard(err) {
			return meta, classifyAppend(err, true)
		}
		d.refused = time.Now()
	}
	meta, committing, err := appendInSteps(ctx, conn.Conn(), d, f, ttl)
	if err != nil {
		// A connection with a transaction still open is closed by Release.
		return nil, classifyAppend(err, committing)
	}
	return meta, nil
}

// isSmall reports whether a flush goes by one statement.
func (f *flush) isSmall() bool {
	if len(f.events) > smallFlush {
		return false
	}
	bytes := 0
	for i := range f.batches {
		bytes += f.batches[i].bytes
	}
	return bytes <= smallFlushBytes
}

// appendAlone appends a small flush in one round trip: any error that is not Postgres's own
// leaves the outcome unknown.
func appendAlone(ctx context.Context, conn *pgx.Conn, d *deduper, f *flush, ttl time.Duration) (meta []batchMeta, err error) {
	failpoint.Hit("ingest/before-commit-alone")
	if d != nil {
		meta, err = appendGuarded(ctx, conn, d, f, ttl)
	} else {
		meta, err = appendAtOnce(ctx, conn, f, ttl)
	}
	if err = failpoint.Err("ingest/after-commit-alone", err); err != nil {
		return nil, err
	}
	return meta, nil
}

// appendAtOnce is one statement, which is its own transaction, or, with new keys or rows of the outbox,
// several without BEGIN and COMMIT, which are one as well (appendGuarded).
func appendAtOnce(ctx context.Context, conn *pgx.Conn, f *flush, ttl time.Duration) ([]batchMeta, error) {
	if len(f.newKeys)+len(f.taken) > 0 {
		batch := &pgx.Batch{}
		before := f.queue(batch, false, ttl)
		return f.readAnswers(conn.SendBatch(ctx, batch), before, nil)
	}
	sql, args := f.statement(false, ttl)
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return f.readHeads(rows)
}

// queue appends to a round trip the statement that moves the heads, and before it, where there are rows of the
// outbox or new keys, the ones that delete these and make heads for those. It returns how many come before.
func (f *flush) queue(batch *pgx.Batch, logged bool, ttl time.Duration) (before int) {
	f.queueTaken(batch)
	f.queueNewKeys(batch)
	before = batch.Len()
	sql, args := f.statement(logged, ttl)
	batch.Queue(sql, args...)
	return before
}

// queueTaken appends to a round trip the statements that delete rows of the outbox, if there are any: before
// the heads are locked, so that nobody waits for them while this waits for another taker's transaction.
func (f *flush) queueTaken(batch *pgx.Batch) {
	for _, t := range f.taken {
		batch.Queue(outboxTakeSQL, t.args()...)
	}
}

// queueNewKeys appends to a round trip the statement that makes heads for new keys, if there are any.
func (f *flush) queueNewKeys(batch *pgx.Batch) bool {
	if len(f.newKeys) == 0 {
		return false
	}
	sources, types, _ := keyColumns(f.newKeys)
	batch.Queue(addKeysSQL, sources, types)
	return true
}

// appendInSteps moves the heads, lets the deduper look at what others accepted, copies the
// events of a large flush, and commits: three round trips, or two for a small flush that the
// guard has refused. committing says whether the COMMIT had been sent when the error came.
func appendInSteps(ctx context.Context, conn *pgx.Conn, d *deduper, f *flush, ttl time.Duration) (meta []batchMeta, committing bool, err error) {
	meta, err = openFlush(ctx, conn, d, f, ttl)
	if errors.Is(err, errAcceptedBefore) || errors.Is(err, errServerChanged) || isKeyUnknown(err) || isTaken(err) {
		_, _ = conn.Exec(ctx, "ROLLBACK") // if it fails, so does the connection
	}
	if err != nil {
		return nil, false, err
	}
	failpoint.Hit("ingest/in-transaction")
	if !f.isSmall() {
		if _, err := conn.PgConn().CopyFrom(ctx, newCopyReader(f), copyEventsSQL); err != nil {
			return nil, false, fmt.Errorf("copy the events: %w", err)
		}
	}
	failpoint.Hit("ingest/before-commit")
	tag, err := conn.Exec(ctx, "COMMIT")
	err = failpoint.Err("ingest/after-commit", err)
	if err != nil {
		return nil, true, fmt.Errorf("commit: %w", err)
	}
	if tag.String() != "COMMIT" {
		// Postgres answers ROLLBACK to the COMMIT of a failed transaction.
		return nil, false, fmt.Errorf("commit: Postgres answered %s", tag)
	}
	return meta, true, nil
}

// openFlush is the first round trip: it begins, moves the heads, and then, with the heads
// locked, reads what was accepted by others.
func openFlush(ctx context.Context, conn *pgx.Conn, d *deduper, f *flush, ttl time.Duration) (meta []batchMeta, err error) {
	start := &pgx.Batch{}
	start.Queue("BEGIN")
	if f.queueNewKeys(start) {
		// Committed by itself: others wait for it, and are not to wait for a COPY.
		start.Queue("COMMIT")
		start.Queue("BEGIN")
	}
	f.queueTaken(start)
	before := start.Len()
	sql, args := f.statement(d != nil, ttl)
	start.Queue(sql, args...)
	if d != nil {
		// A statement of its own: its snapshot is taken after the locks were.
		start.Queue(readLogSQL, d.readArgs()...)
	}
	results := conn.SendBatch(ctx, start)
	if meta, err = f.readAnswers(results, before, d); err != nil {
		return nil, err
	}
	if d != nil && d.learnt(f.events) {
		return nil, errAcceptedBefore
	}
	return meta, nil
}

// readAnswers takes the answers of a round trip: to what comes before, without rows of interest, to
// the statement that moves the heads and, with a deduper, to the one that reads the log.
func (f *flush) readAnswers(results pgx.BatchResults, before int, d *deduper) (meta []batchMeta, err error) {
	defer results.Close()
	for range before {
		if _, err := results.Exec(); err != nil {
			return nil, fmt.Errorf("begin, take rows out of the outbox, or make heads for new keys: %w", err)
		}
	}
	rows, err := results.Query()
	if err != nil {
		return nil, fmt.Errorf("move the heads: %w", err)
	}
	if meta, err = f.readHeads(rows); err != nil {
		return nil, fmt.Errorf("move the heads: %w", err)
	}
	if d != nil {
		rows, err := results.Query()
		if err != nil {
			return nil, fmt.Errorf("read what others accepted: %w", err)
		}
		if err := d.read(rows); err != nil {
			return nil, fmt.Errorf("read what others accepted: %w", err)
		}
	}
	if err := results.Close(); err != nil {
		return nil, fmt.Errorf("end the round trip: %w", err)
	}
	return meta, nil
}

// statement is the one that moves the heads, with its parameters, and stores the events too
// where they do not go by COPY. With logged it notes their fingerprints.
func (f *flush) statement(logged bool, ttl time.Duration) (sql string, args []any) {
	var s appendStatement
	switch small := f.isSmall(); {
	case small && len(f.keys) == 1 && len(f.batches) == 1:
		s, args = appendOneKey, f.oneKeyArgs(ttl)
	case small:
		s, args = appendSmall, append(f.headArgs(ttl), f.eventArgs()...)
	default:
		s, args = appendLarge, f.headArgs(ttl)
	}
	if !logged {
		return s.plain, args
	}
	return s.logged, append(args, f.fingerprints())
}

// fingerprints are those of the events, one after another.
func (f *flush) fingerprints() []byte {
	out := make([]byte, 0, fingerprintBytes*len(f.events))
	for i := range f.events {
		out = append(out, f.events[i].Fingerprint[:]...)
	}
	return out
}

// headArgs are the parameters that the statements for several events share.
func (f *flush) headArgs(ttl time.Duration) []any {
	sources, types, counts := keyColumns(f.keys)
	n := len(f.batches)
	tokens, lanes, events, bytes := make([]int64, n), make([]int16, n), make([]int16, n), make([]int64, n)
	for i, b := range f.batches {
		tokens[i], lanes[i], events[i], bytes[i] = int64(b.token), int16(b.lane), int16(len(b.members)), int64(b.bytes)
	}
	return []any{sources, types, counts, tokens, lanes, events, bytes, ttlMicros(ttl)}
}

// keyColumns are keys as columns: source, type, number of events.
func keyColumns(keys []flushKey) (sources, types []string, counts []int64) {
	sources, types, counts = make([]string, len(keys)), make([]string, len(keys)), make([]int64, len(keys))
	for i, k := range keys {
		sources[i], types[i], counts[i] = k.source, k.typ, k.events
	}
	return sources, types, counts
}

// oneKeyArgs are the parameters of the statement for one batch of one key.
func (f *flush) oneKeyArgs(ttl time.Duration) []any {
	k, b := &f.keys[0], &f.batches[0]
	ids, encoded := make([]string, len(f.events)), make([][]byte, len(f.events))
	for i, e := range f.events {
		ids[i], encoded[i] = e.ID, e.Encoded
	}
	return []any{k.source, k.typ, int64(b.token), int16(b.lane), int64(b.bytes), ttlMicros(ttl), ids, encoded}
}

// ttlMicros is a TTL in microseconds, nil where events never expire.
func ttlMicros(ttl time.Duration) *int64 {
	if ttl <= 0 {
		return nil
	}
	us := ttl.Microseconds()
	return &us
}

// eventArgs are the events as columns, for the statement that takes them along.
func (f *flush) eventArgs() []any {
	n := len(f.events)
	batches, indexes, keys, back := make([]int64, n), make([]int32, n), make([]int32, n), make([]int64, n)
	sources, types, ids, encoded := make([]string, n), make([]string, n), make([]string, n), make([][]byte, n)
	for i, e := range f.events {
		p := f.placed[i]
		batches[i], indexes[i], keys[i] = int64(p.batch)+1, int32(p.index), int32(p.key)+1
		back[i] = f.keys[p.key].events - 1 - p.nth
		sources[i], types[i], ids[i], encoded[i] = e.Source, e.Type, e.ID, e.Encoded
	}
	return []any{batches, indexes, keys, sources, types, ids, back, encoded}
}

// readHeads takes the batch numbers and the moved heads from a statement's rows.
func (f *flush) readHeads(rows pgx.Rows) ([]batchMeta, error) {
	defer rows.Close()
	meta := make([]batchMeta, len(f.batches))
	var heads []int64
	found := 0
	// Of a row in turn.
	var n, number pgtype.Int8
	var queued, expires pgtype.Timestamptz
	var seqnums []int64
	for rows.Next() {
		if err := rows.Scan(&n, &number, &queued, &expires, &seqnums); err != nil {
			return nil, err
		}
		if !n.Valid {
			heads = seqnums
			continue
		}
		found++
		f.batches[n.Int64-1].number = number.Int64
		meta[n.Int64-1].queuedAt = queued.Time.UTC()
		if expires.Valid {
			meta[n.Int64-1].expiresAt = expires.Time.UTC()
		}
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	if found != len(f.batches) || len(heads) != len(f.keys) {
		return nil, fmt.Errorf("moved %d heads and %d batches, want %d and %d", len(heads), found, len(f.keys), len(f.batches))
	}
	f.numberEvents(heads)
	return meta, nil
}

// dataError is an error by which Postgres says that the data itself is unacceptable, so
// that a retry is pointless.
type dataError struct{ err error }

func (e *dataError) Error() string { return "Postgres refused the data: " + e.err.Error() }
func (e *dataError) Unwrap() error { return e.err }

func classifyAppend(err error, committing bool) error {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.SeverityUnlocalized == "ERROR" {
		if isNumberTaken(err) || isKeyUnknown(err) {
			return err
		}
		if isTaken(err) {
			return fmt.Errorf("%w: %w", errTakenElsewhere, err)
		}
		if pgErr.ConstraintName == laneConstraint {
			return fmt.Errorf("%w: the number of lanes was changed while this process ran; restart it: %w", ErrUnavailable, err)
		}
		switch pgErr.Code[:2] {
		case "22", "23", "54": // data exception, constraint violation, limit exceeded
			return &dataError{err}
		}
	}
	return classify(err, committing)
}

// isNumberTaken reports that a batch number was given out twice: the sequence was set
// back by a restore.
func isNumberTaken(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == "23505" && pgErr.SchemaName == "waybill" &&
		(pgErr.TableName == "batches" || pgErr.TableName == "events")
}

// isKeyUnknown reports that a key of the flush has no head yet: waybill.move_heads says so, and
// the statement for one key has no seqnum to store then.
func isKeyUnknown(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && (pgErr.Code == "WB001" ||
		pgErr.Code == "23502" && pgErr.SchemaName == "waybill" && pgErr.TableName == "events" && pgErr.ColumnName == "seqnum")
}

// copyReader produces the events of a flush in Postgres's binary COPY format
// (postgresql.org, COPY, "Binary Format") a few rows at a time.
type copyReader struct {
	f    *flush
	next int // event to encode; len(events): the trailer; beyond: done
	buf  []byte
	off  int
}

const copyChunk = 64 << 10

func newCopyReader(f *flush) *copyReader {
	header := append([]byte("PGCOPY\n\xff\r\n\x00"), 0, 0, 0, 0, 0, 0, 0, 0)
	return &copyReader{f: f, buf: header}
}

func (r *copyReader) Read(p []byte) (int, error) {
	if r.off == len(r.buf) {
		r.fill()
		if len(r.buf) == 0 {
			return 0, io.EOF
		}
	}
	n := copy(p, r.buf[r.off:])
	r.off += n
	return n, nil
}

func (r *copyReader) fill() {
	r.buf, r.off = r.buf[:0], 0
	failpoint.Hit("ingest/in-copy")
	for r.next < len(r.f.events) && len(r.buf) < copyChunk {
		r.buf = r.f.appendRow(r.buf, r.next)
		r.next++
	}
	if r.next == len(r.f.events) && len(r.buf) < copyChunk {
		r.buf = binary.BigEndian.AppendUint16(r.buf, 0xffff)
		r.next++
	}
}

// appendRow appends event i as a binary tuple.
func (f *flush) appendRow(dst []byte, i int) []byte {
	e, p := &f.events[i], f.placed[i]
	dst = binary.BigEndian.AppendUint16(dst, 6)
	dst = appendInt8(dst, Position(f.batches[p.batch].number, p.index))
	dst = appendField(dst, e.Source)
	dst = appendField(dst, e.Type)
	dst = appendField(dst, e.ID)
	dst = appendInt8(dst, f.seqnums[i])
	return appendField(dst, e.Encoded)
}

func appendInt8(dst []byte, v int64) []byte {
	dst = binary.BigEndian.AppendUint32(dst, 8)
	return binary.BigEndian.AppendUint64(dst, uint64(v))
}

func appendField[T string | []byte](dst []byte, v T) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(v)))
	return append(dst, v...)
}
