package pipeline

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
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
	//go:embed sql/outbox_bound.sql
	outboxBoundSQL string
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
// taker has them, and their events are committed. Or the server is another one, or another run of it, than they were read
// from. Nothing of the transaction was stored.
var errTakenElsewhere = errors.New("another taker has taken some of the outbox's rows")

// takenRows are rows that one taker has read and takes.
type takenRows struct {
	keys   []outboxKey
	server time.Time // when the server started that they were read from: their numbers are of one run of one server
}

// args are the parameters of outbox_take.sql.
func (t takenRows) args() []any {
	xids, ids := outboxKeys(t.keys)
	return []any{xids, ids, t.server}
}

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

// outboxConn is a connection of a taker: it listens, and holds locks for as long as it lives.
type outboxConn struct {
	*pgx.Conn
	notified atomic.Bool // since it was last waited for
	server   time.Time   // when the server started
}

// connectOutbox connects a session for a taker. What it writes are hints, which need not be flushed. A statement that
// takes longer than within is ended by the server, and the session goes on.
func (s *Store) connectOutbox(ctx context.Context, within time.Duration) (*outboxConn, error) {
	var c outboxConn
	cfg := s.pool.Config().ConnConfig.Copy()
	cfg.RuntimeParams["synchronous_commit"] = "off"
	cfg.RuntimeParams["idle_session_timeout"] = millis(takerStalls)
	// pgx would keep each until somebody waits for it, which a taker does only when it has nothing to do.
	cfg.OnNotification = func(*pgconn.PgConn, *pgconn.Notification) { c.notified.Store(true) }
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to Postgres: %w", err)
	}
	c.Conn = conn
	if _, err = conn.Exec(ctx, `LISTEN waybill_outbox`); err == nil {
		_, err = conn.Exec(ctx, outboxBoundSQL, within.Milliseconds())
	}
	if err == nil {
		err = conn.QueryRow(ctx, serverStartSQL).Scan(&c.server)
	}
	if err == nil {
		_, err = conn.Exec(ctx, outboxJoinSQL)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen to the outbox: %w", err), conn.Close(ctx))
	}
	return &c, nil
}

// wait returns when somebody has notified since it returned last, or with an error when ctx ends.
func (c *outboxConn) wait(ctx context.Context) error {
	if c.notified.Swap(false) {
		return nil
	}
	_, err := c.WaitForNotification(ctx)
	c.notified.Store(false)
	return err
}

// xmaxSQL is the number of the next transaction.
const xmaxSQL = `SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint`

// outboxLimits bound one read: its rows, their bytes, and how far it looks.
type outboxLimits struct {
	rows, bytes int
	last        outboxKey
}

// readOutbox reads what is new since what was read, of some shards, and returns what is read then. all: that is
// all there was.
func (s *Store) readOutbox(ctx context.Context, conn *pgx.Conn, read outboxScan, shards []int16, most outboxLimits) (rows []outboxRow, next outboxScan, all bool, err error) {
	defer s.metrics.time("read_outbox")(&err)
	xids, ids := read.openColumns()
	found, err := conn.Query(ctx, outboxReadSQL, xids, ids, read.past.xid, read.past.id, shards, most.rows, most.bytes, most.last.xid, most.last.id)
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
	whole := there < most.rows && len(rows) == there
	rows = sortOutbox(rows)
	keys := make([]outboxKey, len(rows))
	for i := range rows {
		keys[i] = rows[i].key
	}
	next, all = read.afterRead(in, whole, keys, most.last)
	return rows, next, all, nil
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

	// For the next survey: the transaction from which on rows may be there, and those before it of which they may be.
	next int64
	late []int64
	// When a survey last began with all there is, and how long that took.
	wholeAt time.Time
	whole   time.Duration
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
	began, begins := time.Now(), before.next == 0
	if !begins && began.Sub(before.wholeAt) >= max(wholeEvery, wholeShare*before.whole) {
		out, err = lookAtOutbox(ctx, from, 0, nil)
		if err == nil || !isStatementTimeout(err) {
			out.wholeAt, out.whole = began, time.Since(began)
			return out, err
		}
		// Too many rows are deleted that vacuum may not remove.
		before.wholeAt, before.whole = began, time.Since(began)
	}
	out, err = lookAtOutbox(ctx, from, before.next, before.late)
	out.wholeAt, out.whole = before.wholeAt, before.whole
	if begins {
		out.wholeAt, out.whole = began, time.Since(began)
	}
	return out, err
}

// lookAtOutbox surveys the rows of the transactions from next on, and of those in late.
func lookAtOutbox(ctx context.Context, from rowQuerier, next int64, late []int64) (out OutboxSurvey, err error) {
	var age float64
	var text string
	err = from.QueryRow(ctx, outboxSurveySQL, maxOutboxCount, next, late).
		Scan(&out.Waiting, &age, &out.Refused, &out.FirstRefused, &out.Reason, &text, &out.next, &out.late)
	if err != nil {
		return OutboxSurvey{}, fmt.Errorf("survey the outbox: %w", err)
	}
	out.Oldest = max(0, time.Duration(age*float64(time.Second)))
	in, err := parseSnapshot(text)
	if err != nil {
		return OutboxSurvey{}, fmt.Errorf("survey the outbox: %w", err)
	}
	if out.next == 0 || out.next > in.xmax { // nothing waits, or what was restored from another cluster
		out.next = in.xmax
	}
	for _, xid := range in.inProgress {
		if xid < out.next {
			out.late = append(out.late, xid)
		}
	}
	slices.Sort(out.late)
	out.late = slices.Compact(out.late)
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
