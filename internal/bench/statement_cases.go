package bench

import (
	"fmt"
	"strconv"
	"strings"
)

// statementCase is one way to run a statement of the store, by the name of its file.
type statementCase struct {
	file string
	// what says how much it is given to do, or what it finds.
	what string
	// ingest is a connection that keeps its plans; the others are as those of the janitor and of
	// the operator's commands.
	ingest bool
	// scan is what may take minutes, since it walks over all batches and locks none.
	scan bool
	// local are settings of its transaction.
	local string
	// args is a query for its parameters, a column each; empty: it has none. {n} is how many
	// rows there are.
	args string
}

// statementsNotMeasured says why a statement has no case.
var statementsNotMeasured = map[string]string{
	"change_lanes":  "it sets a column of a table with one row, once in a pipeline's life and while nothing runs",
	"outbox_bound":  "it sets a bound of its session, and looks at no table",
	"outbox_join":   "it takes a lock that stays with its session, and looks at no table",
	"outbox_lock":   "it takes locks that stay with their session, and looks at no table",
	"outbox_unlock": "it gives locks of its session back, and looks at no table",
}

// Parts of the cases' parameters. The rows are those of statementRows.
const (
	// batches100 are a hundred neighbours, as they mostly settle; start is one of them.
	batches100 = `ARRAY(SELECT first + i FROM generate_series(0, 99) AS i)`
	// ranges10 are their positions, in ten ranges.
	ranges10 = `ARRAY(SELECT (first + 10 * i) << 12 FROM generate_series(0, 9) AS i), ARRAY(SELECT (first + 10 * i + 10) << 12 FROM generate_series(0, 9) AS i)`
	start    = ` FROM (SELECT 1 + floor(random() * ({n} - 100))::bigint AS first) AS start`
	// batches16 are what append.sql and its parts take for batches, and no TTL.
	batches16 = `ARRAY(SELECT floor(random() * 1e15)::bigint FROM generate_series(1, 16)), ARRAY(SELECT generate_series(0, 15)::smallint),
		ARRAY(SELECT 4::smallint FROM generate_series(1, 16)), ARRAY(SELECT 1200::bigint FROM generate_series(1, 16)), NULL::bigint`
	// keys64 are up to 64 keys.
	keys64 = ` FROM (SELECT source, row_number() OVER (ORDER BY source) - 1 AS i FROM (
			SELECT DISTINCT '/bench/' || 1 + floor(random() * {n})::bigint AS source FROM generate_series(1, 64)) AS drawn) AS k`
	sampleBytes  = `decode(repeat('78', 300), 'hex')`
	sinksAndTime = `ARRAY['archive', 'ingress'], ARRAY[%s, %s]`
	// letters100 are dead letters that are neighbours, and wait for nothing.
	letters100 = ` FROM (SELECT * FROM waybill.dead_letters WHERE requeued_batch IS NULL
			AND position >= (10 * {n} + floor(random() * ({n} - 200))::bigint) << 12 ORDER BY position LIMIT 100) AS l`
)

// rows are some of the outbox, neighbours: how many follows.
const rows = ` FROM (SELECT xid, id FROM waybill.outbox WHERE xid >= floor(random() * ({n} - 200))::bigint ORDER BY xid, id LIMIT `

// oneKey are the parameters of a flush of one batch of one key.
func oneKey(events int) string {
	return fmt.Sprintf(`SELECT '/bench/' || 1 + floor(random() * {n})::bigint, 't', floor(random() * 1e15)::bigint, 3::smallint, 300::bigint,
		NULL::bigint, ARRAY(SELECT 'id' || generate_series(1, %[1]d)), array_fill(`+sampleBytes+`, ARRAY[%[1]d])`, events)
}

func sinksBefore(at string) string { return fmt.Sprintf(sinksAndTime, at, at) }

// statementCases are what is measured.
var statementCases = []statementCase{
	{file: "account_waiting", what: "all events that wait", scan: true},
	{
		file: "add_keys", what: "64 new keys", ingest: true,
		args: `SELECT array_agg('/new/' || random()), array_agg('t'::text) FROM generate_series(1, 64)`,
	},
	{
		file: "append", what: "heads of 64 keys, 16 batches", ingest: true,
		args: `SELECT array_agg(source ORDER BY i), array_agg('t'::text), array_agg(1::bigint), ` + batches16 + keys64,
	},
	{
		file: "append_events", what: "64 events, 16 batches", ingest: true,
		args: `SELECT array_agg(source ORDER BY i), array_agg('t'::text), array_agg(1::bigint), ` + batches16 + `,
			array_agg(1 + i % 16 ORDER BY i), array_agg((i / 16)::integer ORDER BY i), array_agg((1 + i)::integer ORDER BY i), array_agg(source ORDER BY i), array_agg('t'::text),
			array_agg('id' || i ORDER BY i), array_agg(0::bigint), array_agg(` + sampleBytes + `)` + keys64,
	},
	{file: "append_log", what: "1 event, with its fingerprint", ingest: true, args: oneKey(1) + `, decode(repeat('ab', 12), 'hex')`},
	{file: "append_one_key", what: "1 event", ingest: true, args: oneKey(1)},
	{file: "append_one_key", what: "64 events", ingest: true, args: oneKey(64)},
	{file: "backlog_read", what: "as each second", ingest: true, args: `SELECT 10000000`},
	{file: "backlog_save", what: "as by each survey", args: `SELECT 1, 2, now()`},
	{file: "backlog_survey", what: "all batches", scan: true, ingest: true, args: `SELECT 10000000`},
	{file: "claim_stale", what: "100 batches", args: `SELECT ` + batches100 + `, ` + sinksBefore("now()") + `, 10000000` + start},
	{file: "count_waiting", what: "10,000 batches", args: `SELECT 10000`},
	{
		file: "dedupe_guard", what: "1 event, 10 rows of others", ingest: true,
		args: `SELECT '5000:5000:', '{}', pg_postmaster_start_time(), ARRAY[decode(repeat('ab', 12), 'hex')], 1048576`,
	},
	{file: "dedupe_load", what: "all of the log", ingest: true, args: `SELECT 1600000, '0'`},
	{file: "dedupe_mark", what: "an empty row", ingest: true},
	{file: "dedupe_newest", what: "all of the log", ingest: true},
	{file: "dedupe_old", what: "nothing to forget"},
	{file: "dedupe_read", what: "10 rows of others", ingest: true, args: `SELECT '5000:5000:', '{}'`},
	{file: "dedupe_read_in_progress", what: "10 rows of others", ingest: true, args: `SELECT '5000:5002:5000,5001', '{}'`},
	{file: "dedupe_turn", what: "the time"},
	{file: "delete_batches", what: "100 batches", args: `SELECT ` + batches100 + start},
	{file: "delete_events", what: "10 ranges, 100 events", args: `SELECT ` + ranges10 + start},
	{file: "drop_removed_sinks", what: "no sink was removed", args: `SELECT 200`},
	{file: "end_stalled_copies", what: "no COPY is stalled", args: `SELECT 10000000`},
	{file: "expire", what: "100 of 1 % are due", args: `SELECT 100, 8192`},
	{
		file: "find_letters", what: "a page of 10,000, 500 wanted",
		local: `SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off`, // as the walk does
		args:  `SELECT NULL, now(), '-infinity', 0, 0, '', 10000, 500, '', '', '', false, '', false, '', '{dead}'`,
	},
	{file: "find_stale", what: "none is stale", scan: true, args: `SELECT 3, ` + sinksBefore("'epoch'::timestamptz") + `, 20000, 86400000000`},
	{file: "find_stale", what: "all are stale", scan: true, args: `SELECT 3, ` + sinksBefore("now()") + `, 20000, 10000000`},
	{file: "purge_dead_letters", what: "5,000 letters", args: `SELECT ({n} - 5000)::bigint * 1000000, 5000`},
	{file: "purge_letters", what: "100 letters", args: `SELECT array_agg(failed_at), array_agg(position), array_agg(token), array_agg(sink)` + letters100},
	{file: "outbox_emit", what: "1 event", args: `SELECT ARRAY['/bench/1'], ARRAY['t'], ARRAY['id'], ARRAY[300], ` + sampleBytes},
	{
		file: "outbox_read", what: "2,048 rows", ingest: true,
		args: `SELECT '{}'::bigint[], '{}'::bigint[], floor(random() * {n} / 2)::bigint, 0::bigint, ARRAY(SELECT generate_series(0, 15)::smallint), 2048, 4194304, 9223372036854775807, 9223372036854775807`,
	},
	{file: "outbox_refuse", what: "1 row", ingest: true, args: `SELECT array_agg(xid), array_agg(id), ARRAY['why']` + rows + `1) AS o`},
	{file: "outbox_sleep", what: "all shards", ingest: true, args: `SELECT 65535, true`},
	{file: "outbox_survey", what: "up to 100,000 rows", args: `SELECT 100000, 0::bigint, '{}'::bigint[]`},
	{file: "outbox_take", what: "100 rows", ingest: true, args: `SELECT array_agg(xid), array_agg(id), pg_postmaster_start_time()` + rows + `100) AS o`},
	{file: "outbox_takers", what: "the locks of the cluster", ingest: true},
	{file: "read_events", what: "10 ranges, 100 events", args: `SELECT ` + ranges10 + start},
	{file: "read_letters", what: "100 letters", args: `SELECT array_agg(position), array_agg(token), array_agg(sink), true` + letters100},
	{file: "read_letters_at", what: "1 position", args: `SELECT (10 * {n} + first) << 12, '', 100` + start},
	{file: "repair_numbers", what: "nothing to repair"},
	{
		file: "requeue", what: "100 letters",
		args: `SELECT array_agg(failed_at), array_agg(position), array_agg(token), array_agg(sink), array_agg(3::smallint), NULL` + letters100,
	},
	{
		file: "settle_late", what: "100 receipts, 50 of expired events",
		args: `SELECT ARRAY(SELECT 10 * {n} + first + i FROM generate_series(0, 99) AS i), ARRAY(SELECT first + i FROM generate_series(0, 99) AS i),
			ARRAY(SELECT 'archive' FROM generate_series(1, 100)), ARRAY(SELECT '{}' FROM generate_series(1, 100))` + start,
	},
	{
		file: "settle_late_requeued", what: "100 receipts, 10 of expired events",
		args: `SELECT ARRAY(SELECT 20 * {n} + first + i FROM generate_series(0, 99) AS i), ARRAY(SELECT first + i FROM generate_series(0, 99) AS i),
			ARRAY(SELECT 'archive' FROM generate_series(1, 100)), ARRAY(SELECT '{}' FROM generate_series(1, 100))` + start,
	},
	{file: "settle_lock", what: "100 batches", args: `SELECT ` + batches100 + start},
	{
		file: "settle_refused", what: "100 events",
		args: `SELECT ARRAY(SELECT (first + i) << 12 FROM generate_series(0, 99) AS i), ARRAY(SELECT 'archive' FROM generate_series(1, 100)),
			ARRAY(SELECT 'REFUSED' FROM generate_series(1, 100)), ARRAY(SELECT 'no' FROM generate_series(1, 100))` + start,
	},
	{
		file: "settle_requeued", what: "100 receipts, 20 of requeued events",
		args: `SELECT ARRAY(SELECT 20 * {n} + first + i FROM generate_series(0, 99) AS i), ARRAY(SELECT first + i FROM generate_series(0, 99) AS i),
			ARRAY(SELECT 'archive' FROM generate_series(1, 100))` + start,
	},
	{file: "settle_waiting", what: "100 batches", args: `SELECT ` + batches100 + `, ARRAY['archive']` + start},
	{file: "split_damaged", what: "1 event", args: `SELECT first, ARRAY[first << 12], ARRAY['why']` + start},
	{file: "split_sound", what: "1 event", args: `SELECT first, ARRAY[first << 12]` + start},
	{file: "survey", what: "all batches", scan: true, args: `SELECT 10000000`},
	{file: "unlink_requeued", what: "100 batches, 20 requeued", args: `SELECT ARRAY(SELECT 20 * {n} + first + i FROM generate_series(0, 99) AS i)` + start},
}

// statementRows fill the tables with n rows each: batches of one event, which is the worst that can
// wait, dead letters, heads, and the log of what was accepted. {n} is n.
var statementRows = []string{
	`SELECT waybill.add_keys(array_agg('/bench/' || i), array_agg('t'::text)) FROM generate_series(1, {n}) AS i`,
	`INSERT INTO waybill.batches (batch, token, lane, events, bytes, queued_at, expires_at, waiting_for)
		SELECT i, i, i % 16, 1, 300, now() - interval '1 hour',
			CASE WHEN i <= {n} / 100 THEN now() - interval '1 minute' ELSE now() + interval '7 days' END, '{archive,ingress}'
		FROM generate_series(1, {n}) AS i`,
	`INSERT INTO waybill.events SELECT i::bigint << 12, '/bench/' || i, 't', 'id' || i, 1, decode(repeat('78', 300), 'hex') FROM generate_series(1, {n}) AS i`,
	// A tenth is on its way again, and a tenth was and has expired again.
	`INSERT INTO waybill.dead_letters (position, token, sink, code, reason, failed_at, accepted_at, requeued_at, requeued_batch, requeued_token,
			lane, source, type, event_id, seqnum, event)
		SELECT (10 * {n} + i)::bigint << 12, i, 'archive', CASE WHEN i % 2 = 1 THEN 'expired' ELSE 'REFUSED' END, 'why',
			now() - ({n} - i) * interval '1 second', now(), CASE WHEN i % 10 = 0 THEN now() END,
			CASE WHEN i % 5 = 0 THEN 20 * {n} + i END, CASE WHEN i % 5 = 0 THEN i END,
			i % 16, '/bench/' || i, 't', 'id' || i, 1, decode(repeat('78', 300), 'hex')
		FROM generate_series(1, {n}) AS i`,
	// The newest ten are of transactions that others would have committed meanwhile.
	`INSERT INTO waybill.dedupe_log (slot, xid, events, fingerprints)
		SELECT floor(extract(epoch FROM now()) / extract(epoch FROM dedupe_window))::bigint % 3,
			(CASE WHEN i > {n} - 10 THEN 5000 + i % 2 ELSE 3 + i % 500 END)::text::xid8, 1, decode(lpad(to_hex(i), 24, '0'), 'hex')
		FROM waybill.pipeline, generate_series(1, {n}) AS i`,
	`INSERT INTO waybill.outbox (xid, source, type, event_id, event)
		SELECT i, '/bench/' || i, 't', 'id' || i, decode(repeat('78', 300), 'hex') FROM generate_series(1, {n}) AS i`,
	`SELECT setval('waybill.batch_numbers', 100 * {n}::bigint)`,
}

// withRows puts the number of rows into a query.
func withRows(sql string, n int) string { return strings.ReplaceAll(sql, "{n}", strconv.Itoa(n)) }
