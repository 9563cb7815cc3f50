package pipeline

import (
	"context"
	_ "embed"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/pipeline/failpoint"
)

var (
	//go:embed sql/expire.sql
	expireSQL string
	//go:embed sql/purge_dead_letters.sql
	purgeDeadLettersSQL string
	//go:embed sql/purge_letters.sql
	purgeLettersSQL string
	//go:embed sql/read_letters.sql
	readLettersSQL string
	//go:embed sql/read_letters_at.sql
	readLettersAtSQL string
)

// DeadLetter is an event that a sink refused, or that it did not take in time.
type DeadLetter struct {
	Position int64
	Token    uint64 // of the batch that it was in
	Sink     string
	Code     string
	Reason   string
	FailedAt time.Time
	// RequeuedAt is when it was put back into the queue, zero when it is not on its way;
	// DeliveredLateAt when a receipt said that the sink took it after all.
	RequeuedAt, DeliveredLateAt time.Time
	// RequeuedBatch is the number of the batch it last went into, 0 if it never did;
	// Requeues how often that was.
	RequeuedBatch int64
	Requeues      int
	Lane          int // that it was in

	Source, Type, ID string
	Seqnum           int64
	AcceptedAt       time.Time
	// Encoded is the encoding of the CloudEvent, without seqnum; nil if it was not asked for.
	Encoded []byte
}

// SinkCode is what dead letters are counted by.
type SinkCode struct{ Sink, Code string }

// CodeExpired is the code of a dead letter that its sink did not take within its time to live.
const CodeExpired = "expired"

// State says where the letter stands.
func (d DeadLetter) State() LetterState {
	switch {
	case !d.RequeuedAt.IsZero():
		return LetterRequeued
	case !d.DeliveredLateAt.IsZero():
		return LetterLate
	default:
		return LetterDead
	}
}

func scanLetter(row pgx.CollectableRow) (DeadLetter, error) {
	var d DeadLetter
	var token int64
	var lane int16
	var requeued, late *time.Time
	var batch *int64
	err := row.Scan(&d.Position, &token, &d.Sink, &d.Code, &d.Reason, &d.FailedAt, &requeued, &batch, &d.Requeues,
		&late, &lane, &d.Source, &d.Type, &d.ID, &d.Seqnum, &d.AcceptedAt, &d.Encoded)
	d.Token, d.Lane = uint64(token), int(lane)
	if requeued != nil {
		d.RequeuedAt = *requeued
	}
	if late != nil {
		d.DeliveredLateAt = *late
	}
	if batch != nil {
		d.RequeuedBatch = *batch
	}
	return d, err
}

// readLetters returns those of the letters that are still there, in the order given.
func (s *Store) readLetters(ctx context.Context, found []foundLetter, withEvents bool) ([]DeadLetter, error) {
	if len(found) == 0 {
		return nil, nil
	}
	_, positions, tokens, sinks := keyArgs(found)
	rows, err := s.pool.Query(ctx, readLettersSQL, planAnew, positions, tokens, sinks, withEvents)
	if err != nil {
		return nil, fmt.Errorf("read dead letters: %w", err)
	}
	letters, err := pgx.CollectRows(rows, scanLetter)
	if err != nil {
		return nil, fmt.Errorf("read dead letters: %w", err)
	}
	return letters, nil
}

// lettersAt bounds LettersAt: as many as there may be sinks, and then some.
const lettersAt = 100

// LettersAt returns the dead letters of a position, of one sink or, when it is empty, of all,
// with their events. There is more than one for a sink only where a restore of Postgres gave
// a batch number out twice.
func (s *Store) LettersAt(ctx context.Context, position int64, sink string) ([]DeadLetter, error) {
	rows, err := s.pool.Query(ctx, readLettersAtSQL, position, sink, lettersAt)
	if err != nil {
		return nil, fmt.Errorf("read the dead letters of position %d: %w", position, err)
	}
	letters, err := pgx.CollectRows(rows, scanLetter)
	if err != nil {
		return nil, fmt.Errorf("read the dead letters of position %d: %w", position, err)
	}
	return letters, nil
}

// Purge looks at one page and deletes the letters in it that match, up to limit, in one
// transaction, and returns their number. Those on their way again are never deleted.
func (w *LetterWalk) Purge(ctx context.Context, limit int) (int, error) {
	filter, any := w.filter.without(LetterRequeued)
	if !any {
		w.done = true
		return 0, nil
	}
	found, advance, err := w.next(ctx, filter, limit)
	if err != nil {
		return 0, err
	}
	n := 0
	if len(found) > 0 {
		failed, positions, tokens, sinks := keyArgs(found)
		tag, err := w.store.exec(ctx, purgeLettersSQL, failed, positions, tokens, sinks)
		if err != nil {
			return 0, fmt.Errorf("purge dead letters: %w", err)
		}
		n = int(tag.RowsAffected())
	}
	advance()
	return n, nil
}

// expireBatches and expireEvents bound one Expire, so that its statement takes a second or two
// and not longer than statements may.
const (
	expireBatches = 100
	expireEvents  = 8192
)

// Expire moves some batches past their TTL into dead_letters, the oldest first, and returns
// the number of dead letters; nothing once no batch is past its TTL.
func (s *Store) Expire(ctx context.Context) (moved map[SinkCode]int, err error) {
	defer s.metrics.time("expire")(&err)
	failpoint.Hit("janitor/before-expire")
	rows, err := s.pool.Query(ctx, expireSQL, expireBatches, expireEvents)
	if err != nil {
		return nil, fmt.Errorf("expire: %w", err)
	}
	defer rows.Close()
	out := map[SinkCode]int{}
	for rows.Next() {
		var l SinkCode
		var n int
		if err := rows.Scan(&l.Sink, &l.Code, &n); err != nil {
			return nil, fmt.Errorf("expire: %w", err)
		}
		out[l] = n
	}
	if err := failpoint.Err("janitor/after-expire", rows.Err()); err != nil {
		return nil, fmt.Errorf("expire: %w", err)
	}
	return out, nil
}

// PurgeDeadLetters deletes up to limit dead letters older than ttl that were not requeued.
func (s *Store) PurgeDeadLetters(ctx context.Context, ttl time.Duration, limit int) (n int, err error) {
	defer s.metrics.time("purge_dead_letters")(&err)
	tag, err := s.pool.Exec(ctx, purgeDeadLettersSQL, planAnew, ttl.Microseconds(), limit)
	if err != nil {
		return 0, fmt.Errorf("purge dead letters: %w", err)
	}
	return int(tag.RowsAffected()), nil
}

// DeadLetters counts dead letters by sink and code, reading at most limit rows.
func (s *Store) DeadLetters(ctx context.Context, limit int) (map[[2]string]int64, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT sink, code, count(*) FROM (SELECT sink, code FROM waybill.dead_letters LIMIT $1) AS d
		GROUP BY sink, code`, limit)
	if err != nil {
		return nil, fmt.Errorf("count dead letters: %w", err)
	}
	out := map[[2]string]int64{}
	var sink, code string
	var n int64
	if _, err := pgx.ForEachRow(rows, []any{&sink, &code, &n}, func() error {
		out[[2]string{sink, code}] = n
		return nil
	}); err != nil {
		return nil, fmt.Errorf("count dead letters: %w", err)
	}
	return out, nil
}
