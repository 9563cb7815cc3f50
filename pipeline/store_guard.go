package pipeline

import (
	"context"
	_ "embed"
	"errors"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

var (
	//go:embed sql/dedupe_guard.sql
	guardSQL string
	// What others have accepted, or an error where the flush may not be committed at once. The
	// second is for an earlier snapshot in which nothing was in progress, as on an idle system:
	// it has half as many indexes to open.
	readGuardedSQL    = withGuard(readLogSQL)
	readNewGuardedSQL = withGuard(readNewSQL)
)

const (
	// guardBytes bounds what the guard looks through, of rows times events: some milliseconds.
	guardBytes = 1 << 20
	// guardPause is how long flushes take two round trips after the guard has refused one. A
	// refusal costs a round trip and the plans of the connection, and where one comes others
	// follow: the producers send each event to two ingests, or another ingest is busy.
	guardPause = time.Second
)

func withGuard(sql string) string { return strings.Replace(sql, "/* guard */", "\n"+guardSQL, 1) }

// mayGuard reports whether a small flush goes by one round trip: not where Postgres has lately
// refused one, which it does only where there is a log to read.
func (d *deduper) mayGuard() bool {
	return d == nil || time.Since(d.refused) >= d.pause
}

// appendGuarded appends a small flush in one round trip. Postgres itself decides whether it may
// be committed: its guard reads what others accepted, with the heads locked, and ends the
// transaction with an error if that may have an event of the flush. It errs on that side alone;
// refusedByGuard tells that error from all others.
//
// The statements have no BEGIN and no COMMIT: they are one transaction, which the Sync behind
// them commits, or rolls back if one of them failed (postgresql.org, "Message Flow",
// "Pipelining"). So it is known to be committed once all answers were read, that to the Sync
// included, and the connection can be used again after a refusal.
func appendGuarded(ctx context.Context, conn *pgx.Conn, d *deduper, f *flush, ttl time.Duration) ([]batchMeta, error) {
	batch := &pgx.Batch{}
	before := f.queue(batch, true, ttl)
	// A statement of its own: its snapshot is taken after the locks were.
	batch.Queue(d.guardedSQL(), d.guardArgs(f)...)
	return f.readAnswers(conn.SendBatch(ctx, batch), before, d)
}

// guardedSQL is the statement that reads the log and may refuse the flush.
func (d *deduper) guardedSQL() string {
	if strings.HasSuffix(d.safe, ":") { // xmin:xmax:in progress
		return readNewGuardedSQL
	}
	return readGuardedSQL
}

// guardArgs are its parameters.
func (d *deduper) guardArgs(f *flush) []any {
	fingerprints := make([][]byte, len(f.events))
	for i := range f.events {
		fingerprints[i] = f.events[i].Fingerprint[:]
	}
	return append(d.readArgs(), d.server, fingerprints, int64(guardBytes))
}

// refusedByGuard reports that Postgres rolled a flush back because it may not be committed
// before the log was read properly.
func refusedByGuard(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == "23514" && pgErr.SchemaName == "waybill" &&
		pgErr.DataTypeName == "may_commit" && pgErr.ConstraintName == "may_commit"
}
