-- What is in the outbox. Whatever holds up vacuum, it walks over nothing that an earlier look has found gone.
-- $1: the most rows to count
-- $2: of an earlier look, the transaction from which on rows may be there; 0: there was none
-- $3: before that one, the transactions of which rows may be there, or come
-- Returns the rows that wait, the age of the oldest in seconds, the rows that were refused, the first of these
-- and its reason, and for the next look: this snapshot, the first transaction from $2 on that has rows, and those of
-- $3 that have some.
WITH bound AS MATERIALIZED (
    -- A transaction that this server has not reached is of another run of it.
    SELECT CASE WHEN $2::bigint <= pg_snapshot_xmax(pg_current_snapshot())::text::bigint THEN $2::bigint ELSE 0 END AS xid
), late AS MATERIALIZED (
    SELECT o.xid, o.emitted_at FROM unnest($3::bigint[]) AS p(xid)
    CROSS JOIN LATERAL (SELECT xid, emitted_at FROM waybill.outbox WHERE xid = p.xid AND refused_at IS NULL ORDER BY xid, id LIMIT $1::integer) AS o
    WHERE p.xid < (SELECT xid FROM bound) LIMIT $1::integer
), others AS MATERIALIZED (
    SELECT xid, emitted_at FROM waybill.outbox WHERE xid >= (SELECT xid FROM bound) AND refused_at IS NULL
    ORDER BY xid, id LIMIT $1::integer
), refused AS MATERIALIZED (
    SELECT id, reason FROM waybill.outbox WHERE refused_at IS NOT NULL ORDER BY id LIMIT $1::integer
)
SELECT least((SELECT count(*) FROM late) + (SELECT count(*) FROM others), $1::integer),
       coalesce(extract(epoch FROM clock_timestamp() - least((SELECT min(emitted_at) FROM late), (SELECT emitted_at FROM others LIMIT 1)))::float8, 0),
       (SELECT count(*) FROM refused), coalesce((SELECT id FROM refused LIMIT 1), 0), coalesce((SELECT reason FROM refused LIMIT 1), ''),
       pg_current_snapshot()::text, coalesce((SELECT xid FROM others LIMIT 1), 0), ARRAY(SELECT DISTINCT xid FROM late)
