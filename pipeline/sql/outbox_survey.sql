-- What is in the outbox. Whatever holds up vacuum, it walks over nothing that an earlier look has found gone.
-- $1: the most rows to count
-- $2: of an earlier look, the transaction from which on rows may be there; 0: there was none
-- Returns the rows that wait, the age of the oldest in seconds, the rows that were refused, the first of these
-- and its reason, and the transaction for the next look: what is there now, or comes, is not of an earlier one.
WITH since AS MATERIALIZED (
    SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS xmin
), bound AS MATERIALIZED (
    SELECT CASE WHEN $2::bigint <= xmin THEN $2::bigint ELSE 0 END AS xid FROM since
), oldest AS MATERIALIZED (
    SELECT xid, extract(epoch FROM clock_timestamp() - emitted_at)::float8 AS age FROM waybill.outbox
    WHERE xid >= (SELECT xid FROM bound) AND refused_at IS NULL ORDER BY xid, id LIMIT 1
), refused AS MATERIALIZED (
    SELECT id, reason FROM waybill.outbox WHERE refused_at IS NOT NULL ORDER BY id LIMIT $1::integer
)
SELECT (SELECT count(*) FROM (SELECT FROM waybill.outbox WHERE xid >= (SELECT xid FROM bound) AND refused_at IS NULL
                              ORDER BY xid, id LIMIT $1::integer) AS w),
       coalesce((SELECT age FROM oldest), 0), (SELECT count(*) FROM refused), coalesce((SELECT id FROM refused LIMIT 1), 0),
       coalesce((SELECT reason FROM refused LIMIT 1), ''), least((SELECT xid FROM oldest), (SELECT xmin FROM since))
