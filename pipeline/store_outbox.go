package pipeline

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

var (
	//go:embed sql/outbox_read.sql
	outboxReadSQL string
	//go:embed sql/outbox_take.sql
	outboxTakeSQL string
	//go:embed sql/outbox_refuse.sql
	outboxRefuseSQL string
	//go:embed sql/outbox_join.sql
	outboxJoinSQL string
	//go:embed sql/outbox_takers.sql
	outboxTakersSQL string
	//go:embed sql/outbox_lock.sql
	outboxLockSQL string
	//go:embed sql/outbox_unlock.sql
	outboxUnlockSQL string
	//go:embed sql/outbox_sleep.sql
	outboxSleepSQL string
	//go:embed sql/outbox_survey.sql
	outboxSurveySQL string
)

// errTakenElsewhere means that rows of the outbox which a transaction was to take are gone: another
// taker has them, and their events are committed. Nothing of the transaction was stored.
var errTakenElsewhere = errors.New("another taker has taken some of the outbox's rows")

// isTaken is the error of waybill.take_outbox.
func isTaken(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == "WB002"
}

// outboxKeys are keys as columns.
func outboxKeys(keys []outboxKey) (xids, ids []int64) {
	xids, ids = make([]int64, len(keys)), make([]int64, len(keys))
	for i, k := range keys {
		xids[i], ids[i] = k.xid, k.id
	}
	return xids, ids
}

// takerStalls is how long a taker may ask nothing of Postgres before its session, and with it its shards, are taken
// from it: above what a transaction may take. Otherwise it asks four times a second.
const takerStalls = 15 * time.Second

// outboxConn connects a session for a taker: it listens, and holds locks for as long as it lives. What it
// writes are hints, which need not be flushed.
func (s *Store) outboxConn(ctx context.Context) (*pgx.Conn, error) {
	cfg := s.pool.Config().ConnConfig.Copy()
	cfg.RuntimeParams["synchronous_commit"] = "off"
	cfg.RuntimeParams["idle_session_timeout"] = millis(takerStalls)
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to Postgres: %w", err)
	}
	if _, err = conn.Exec(ctx, `LISTEN waybill_outbox`); err == nil {
		_, err = conn.Exec(ctx, outboxJoinSQL)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen to the outbox: %w", err), conn.Close(ctx))
	}
	return conn, nil
}

// outboxLimits bound one read.
type outboxLimits struct{ rows, bytes int }

// readOutbox reads what is new since what was read, of some shards, and returns what is read then. all: that is
// all there was.
func (s *Store) readOutbox(ctx context.Context, conn *pgx.Conn, read outboxScan, shards []int16, most outboxLimits) (rows []outboxRow, next outboxScan, all bool, err error) {
	defer s.metrics.time("read_outbox")(&err)
	xids, ids := read.openColumns()
	found, err := conn.Query(ctx, outboxReadSQL, xids, ids, read.past.xid, read.past.id, shards, most.rows, most.bytes)
	if err != nil {
		return nil, read, false, fmt.Errorf("read the outbox: %w", err)
	}
	defer found.Close()
	var text string
	there := 0
	for found.Next() {
		var r outboxRow
		var n, xid, id *int64
		var age *float64
		var source, typ, eventID *string
		if err := found.Scan(&text, &n, &xid, &id, &age, &source, &typ, &eventID, &r.event, &r.data, &r.isText, &r.attributes); err != nil {
			return nil, read, false, fmt.Errorf("read the outbox: %w", err)
		}
		if xid == nil {
			continue // the row that there is at least
		}
		there = int(*n)
		r.key, r.age = outboxKey{*xid, *id}, time.Duration(*age*float64(time.Second))
		r.source, r.typ, r.id = *source, *typ, *eventID
		rows = append(rows, r)
	}
	if err := found.Err(); err != nil {
		return nil, read, false, fmt.Errorf("read the outbox: %w", err)
	}
	in, err := parseSnapshot(text)
	if err != nil {
		return nil, read, false, fmt.Errorf("read the outbox: %w", err)
	}
	sortOutbox(rows)
	all = there < most.rows && len(rows) == there
	var last outboxKey
	if len(rows) > 0 {
		last = rows[len(rows)-1].key
	}
	return rows, read.after(in, all, last), all, nil
}

// refuseOutbox marks rows of which no event can be made.
func (s *Store) refuseOutbox(ctx context.Context, keys []outboxKey, reasons []string) (err error) {
	defer s.metrics.time("refuse_outbox")(&err)
	xids, ids := outboxKeys(keys)
	if _, err := s.pool.Exec(ctx, outboxRefuseSQL, xids, ids, reasons); err != nil {
		return fmt.Errorf("mark refused rows of the outbox: %w", err)
	}
	return nil
}

// maxOutboxCount bounds how many rows of the outbox are counted.
const maxOutboxCount = 100_000

// OutboxSurvey is what is in the outbox.
type OutboxSurvey struct {
	// Waiting counts the rows that no taker has taken, up to 100,000; Oldest is the age of the first of them.
	Waiting int64
	Oldest  time.Duration
	// Refused counts the rows of which no event can be made, FirstRefused is the id of one, and Reason why.
	Refused      int64
	FirstRefused int64
	Reason       string

	next int64 // transaction that the next survey begins with
}

// SurveyOutbox looks at the outbox. before is an earlier survey of the same database, which makes this one
// cheaper; its zero value is none.
func (s *Store) SurveyOutbox(ctx context.Context, before OutboxSurvey) (out OutboxSurvey, err error) {
	defer s.metrics.time("survey_outbox")(&err)
	return surveyOutbox(ctx, s.pool, before)
}

// SurveyOutboxOf looks at the outbox of the database that conn is connected to.
func SurveyOutboxOf(ctx context.Context, conn *pgx.Conn) (OutboxSurvey, error) {
	return surveyOutbox(ctx, conn, OutboxSurvey{})
}

// rowQuerier is a connection, or a pool of them.
type rowQuerier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

func surveyOutbox(ctx context.Context, from rowQuerier, before OutboxSurvey) (out OutboxSurvey, err error) {
	var age float64
	err = from.QueryRow(ctx, outboxSurveySQL, maxOutboxCount, before.next).
		Scan(&out.Waiting, &age, &out.Refused, &out.FirstRefused, &out.Reason, &out.next)
	if err != nil {
		return OutboxSurvey{}, fmt.Errorf("survey the outbox: %w", err)
	}
	out.Oldest = max(0, time.Duration(age*float64(time.Second)))
	return out, nil
}

// outboxOld is the age from which on a row that waits is trouble.
const outboxOld = time.Minute

// Trouble says what is wrong with the outbox and what to do, or is nil.
func (o OutboxSurvey) Trouble() error {
	var errs []error
	if o.Waiting > 0 && o.Oldest > outboxOld {
		errs = append(errs, fmt.Errorf("%d rows wait in the outbox, the oldest for %v: no ingest takes them; see whether one runs, with --outbox, and what its /readyz says",
			o.Waiting, o.Oldest.Round(time.Second)))
	}
	if o.Refused > 0 {
		errs = append(errs, fmt.Errorf("%d rows of the outbox are no events and wait for somebody: the first, id %d: %s; put it back with SELECT waybill.outbox_retry(%d) once that is mended, or delete it from waybill.outbox",
			o.Refused, o.FirstRefused, o.Reason, o.FirstRefused))
	}
	return errors.Join(errs...)
}
