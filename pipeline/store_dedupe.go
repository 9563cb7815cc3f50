package pipeline

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/waybillhq/waybill/pipeline/failpoint"
)

var (
	//go:embed sql/dedupe_read.sql
	readNewSQL string
	//go:embed sql/dedupe_read_in_progress.sql
	readInProgressSQL string
	readLogSQL        = strings.Replace(readNewSQL, "/* in progress */", "\n"+readInProgressSQL, 1)
	//go:embed sql/dedupe_mark.sql
	markLogSQL string
	//go:embed sql/dedupe_newest.sql
	newestLogSQL string
	//go:embed sql/dedupe_load.sql
	loadLogSQL string
	//go:embed sql/dedupe_old.sql
	oldLogSQL string
	//go:embed sql/dedupe_turn.sql
	turnSQL string
)

const (
	serverStartSQL = `SELECT pg_postmaster_start_time()`
	snapshotSQL    = `SELECT pg_current_snapshot()::text, pg_postmaster_start_time()`
)

// appendOnce commits those of the events that were not accepted before, as Store.Append does.
// Those that were need nothing more: they are committed. again counts them. The rows of the outbox in
// taken are deleted, in the same transaction, whichever of their events are stored.
func (d *deduper) appendOnce(ctx context.Context, events []Event, ttl time.Duration, maxBatchBytes int, taken ...takenRows) (done *appended, again duplicates, err error) {
	for first := true; ; {
		if err := d.ready(ctx); err != nil {
			return nil, again, err
		}
		began := time.Now()
		d.set.expire(began)
		fresh := d.fresh(events)
		if first {
			again.local = len(events) - len(fresh)
		}
		again.log = len(events) - len(fresh) - again.local
		if len(fresh) == 0 {
			done, err = &appended{}, d.sameServer(ctx, taken)
		} else {
			done, err = d.store.appendWith(ctx, d, fresh, ttl, maxBatchBytes, taken...)
		}
		switch {
		case errors.Is(err, errServerChanged):
			first = true
		case errors.Is(err, errAcceptedBefore): // the set has them now
			first = false
		case err != nil:
			return nil, again, err
		default:
			if len(fresh) > 0 {
				d.committed(fresh, began)
			}
			return done, again, nil
		}
	}
}

// duplicates counts the events of one call that were not stored, because the ingest knew that
// they are, or came twice in the call, and because it found them in the log.
type duplicates struct{ local, log int }

// sameServer checks that what the set knows is still so: a database that was restored from a
// backup may lack it. Where it is so, the rows of the outbox in taken, whose events are all known, are
// deleted, in a session of the server that was asked.
func (d *deduper) sameServer(ctx context.Context, taken []takenRows) error {
	conn, err := d.store.pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("%w: connect to Postgres: %w", ErrUnavailable, err)
	}
	defer conn.Release()
	var server time.Time
	if err := conn.QueryRow(ctx, serverStartSQL).Scan(&server); err != nil {
		return fmt.Errorf("%w: ask the server when it started: %w", ErrUnavailable, err)
	}
	if !server.Equal(d.server) {
		d.server = time.Time{}
		return errServerChanged
	}
	if len(taken) == 0 {
		return nil
	}
	failpoint.Hit("ingest/before-take-known")
	batch := &pgx.Batch{}
	for _, t := range taken {
		batch.Queue(outboxTakeSQL, t.args()...)
	}
	err = conn.SendBatch(ctx, batch).Close()
	if err = failpoint.Err("ingest/after-take-known", err); err != nil {
		return classifyAppend(fmt.Errorf("take rows out of the outbox: %w", err), true)
	}
	return nil
}

// load reads the log anew, as far back as there is room for.
func (d *deduper) load(ctx context.Context) (err error) {
	defer d.store.metrics.time("load_accepted")(&err)
	conn, err := d.store.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	began := time.Now()
	var snapshot string
	var server time.Time
	if err := conn.QueryRow(ctx, snapshotSQL).Scan(&snapshot, &server); err != nil {
		return err
	}
	// Committed after the snapshot, it makes the snapshot safe.
	if _, err := conn.Exec(ctx, markLogSQL); err != nil {
		return err
	}
	d.server = time.Time{}
	set := newFingerprintSet(d.set.window, d.set.maxBytes)
	d.set = set
	err = pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL statement_timeout = `+millis(loadTimeout)); err != nil {
			return err
		}
		since, err := newestLogged(ctx, tx, set.capacity())
		if err != nil {
			return err
		}
		rows, err := tx.Query(ctx, loadLogSQL, set.capacity(), since)
		if err != nil {
			return err
		}
		var age float64
		var fingerprints []byte
		now := time.Now()
		n, oldest := 0, time.Time{}
		_, err = pgx.ForEachRow(rows, []any{&age, &fingerprints}, func() error {
			at := now.Add(-time.Duration(age * float64(time.Second)))
			if n == 0 {
				oldest = at
			}
			n += len(fingerprints) / fingerprintBytes
			d.add(fingerprints, at)
			return nil
		})
		if n >= set.capacity() && oldest.After(set.lost) {
			set.lost = oldest
		}
		return err
	})
	if err != nil {
		return err
	}
	d.safe, d.newest, d.own = snapshot, snapshot, [2]string{}
	d.server, d.readAt = server, began
	d.show()
	return nil
}

// newestRows is how many rows of the log are looked at in one round trip.
const newestRows = 10_000

// newestLogged returns the transaction from which on the log has as many fingerprints as there is room for, or its first
// one. The window may hold many times that: a day of lone events, which to read and sort would take longer than a
// statement may, and none of which could be committed meanwhile.
func newestLogged(ctx context.Context, tx pgx.Tx, room int) (since string, err error) {
	if _, err := tx.Exec(ctx, `DECLARE newest NO SCROLL CURSOR FOR `+newestLogSQL); err != nil {
		return "", err
	}
	fetch := `FETCH ` + strconv.Itoa(newestRows) + ` FROM newest`
	for found := 0; ; {
		rows, err := tx.Query(ctx, fetch, pgx.QueryExecModeExec)
		if err != nil {
			return "", err
		}
		n, events := 0, 0
		_, err = pgx.ForEachRow(rows, []any{&since, &events}, func() error {
			n++
			found += events
			return nil
		})
		switch {
		case err != nil:
			return "", err
		case n < newestRows:
			return "0", nil
		case found >= room:
			return since, nil
		}
	}
}

// catchUp reads what others have logged since the last flush, so that the next one need not.
// It commits an empty row, which makes the snapshot of the last one safe.
func (d *deduper) catchUp(ctx context.Context) (err error) {
	if err := d.ready(ctx); err != nil {
		return err
	}
	began := time.Now()
	if began.Sub(d.readAt) < catchUpEvery {
		return nil
	}
	defer d.store.metrics.time("read_accepted")(&err)
	d.set.expire(began)
	conn, err := d.store.pool.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("connect to Postgres: %w", err)
	}
	defer conn.Release()
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, markLogSQL); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, readLogSQL, d.readArgs()...)
		if err != nil {
			return err
		}
		return d.read(rows)
	})
	if err != nil {
		return fmt.Errorf("read what others accepted: %w", err)
	}
	d.committed(nil, began)
	return nil
}

// truncateLockTimeout bounds how long the flushes wait behind a truncate that waits for a
// reader, such as a backup.
const truncateLockTimeout = 100 * time.Millisecond

// errLogInUse means that a transaction that reads the log of accepted events keeps its oldest
// part from being dropped.
var errLogInUse = errors.New("a transaction keeps the log of accepted events from being shortened")

// ForgetAccepted drops the part of the log of accepted events that is older than the window,
// as a whole. The error is errLogInUse when a reader is in the way; try again later.
func (s *Store) ForgetAccepted(ctx context.Context) (err error) {
	defer s.metrics.time("forget_accepted")(&err)
	rows, err := s.pool.Query(ctx, oldLogSQL)
	if err != nil {
		return fmt.Errorf("find what to forget: %w", err)
	}
	old, err := pgx.CollectRows(rows, pgx.RowToStructByPos[oldSlot])
	if err != nil {
		return fmt.Errorf("find what to forget: %w", err)
	}
	for _, slot := range old {
		if err := s.forgetSlot(ctx, slot); err != nil {
			return err
		}
	}
	return nil
}

// oldSlot is a slot of the log that is older than the window at a time, which is in windows.
type oldSlot struct {
	Slot int16
	Turn int64
}

// forgetSlot drops what is in a slot, unless its time is over: who found it to be old may have been
// paused since, and it may be the current one by now. So the time is read with the lock that lets
// nobody write to it.
func (s *Store) forgetSlot(ctx context.Context, old oldSlot) error {
	partition := `waybill.dedupe_log_` + strconv.Itoa(int(old.Slot))
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SET LOCAL lock_timeout = `+millis(truncateLockTimeout)); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `LOCK TABLE `+partition+` IN ACCESS EXCLUSIVE MODE`); err != nil {
			return err
		}
		var turn int64
		if err := tx.QueryRow(ctx, turnSQL).Scan(&turn); err != nil || turn != old.Turn {
			return err // the next look finds what is old then
		}
		_, err := tx.Exec(ctx, `TRUNCATE `+partition)
		return err
	})
	if isLockTimeout(err) {
		return fmt.Errorf("%w: %w", errLogInUse, err)
	}
	if err != nil {
		return fmt.Errorf("forget what was accepted long ago: %w", err)
	}
	return nil
}
