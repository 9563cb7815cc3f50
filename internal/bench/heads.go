package bench

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// postgresSink stands where a verdict names a sink, for what is looked for in Postgres itself.
const postgresSink = "postgres"

// HeadsVerdict is what the seqnums of some keys are like.
type HeadsVerdict struct {
	Keys int64 `json:"keys"`
	// Forks counts events that share their key and seqnum with another, and seqnums beyond the
	// head of their key, which would be given out again. Gaps counts seqnums from 1 to the head
	// that no event has.
	Forks int64 `json:"forks"`
	Gaps  int64 `json:"gaps"`
}

// OK reports whether there is neither; where nobody looked there is nothing to say.
func (h *HeadsVerdict) OK() bool { return h == nil || h.Forks == 0 && h.Gaps == 0 }

// String is the part of a report's line.
func (h *HeadsVerdict) String() string {
	return fmt.Sprintf("seqnums of %d keys: forks %d, gaps %d", h.Keys, h.Forks, h.Gaps)
}

// headsSQL compares the heads with all events ever stored: nothing may have been deleted.
const headsSQL = `
	WITH found AS (
		SELECT source, type, count(*) AS events, count(DISTINCT seqnum) AS seqnums, max(seqnum) AS top
		FROM waybill.events GROUP BY source, type
	), compared AS (
		SELECT coalesce(f.events, 0) AS events, coalesce(f.seqnums, 0) AS seqnums, coalesce(f.top, 0) AS top, coalesce(h.seqnum, 0) AS head
		FROM found f FULL JOIN waybill.key_heads h ON h.source = f.source COLLATE "C" AND h.type = f.type COLLATE "C"
	)
	SELECT count(*), coalesce(sum(events - seqnums + greatest(top - head, 0)), 0)::bigint,
	       coalesce(sum(greatest(head, top) - seqnums), 0)::bigint
	FROM compared`

// readHeads looks at the seqnums of all keys.
func readHeads(ctx context.Context, conn *pgx.Conn) (*HeadsVerdict, error) {
	h := &HeadsVerdict{}
	if err := conn.QueryRow(ctx, headsSQL).Scan(&h.Keys, &h.Forks, &h.Gaps); err != nil {
		return nil, fmt.Errorf("compare the heads with the events: %w", err)
	}
	return h, nil
}

// judgeHeads compares what writers were told with what Postgres has.
func judgeHeads(ctx context.Context, conn *pgx.Conn, name string, l *ledger) (Verdict, error) {
	l.unmark(isPending)
	twice, err := l.markRows(ctx, conn, isPending, `SELECT event_id FROM waybill.events`)
	if err != nil {
		return Verdict{}, err
	}
	l.doubled.Store(twice)
	v := l.judge(name, postgresSink)
	v.Heads, err = readHeads(ctx, conn)
	return v, err
}
