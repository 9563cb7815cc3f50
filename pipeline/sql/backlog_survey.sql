-- Counts what waits when no janitor has done so lately. Of several ingests one does it at a
-- time, and the others go on with what they know. $1: as for backlog_read.
WITH old AS MATERIALIZED (
    SELECT one FROM waybill.backlog
    WHERE surveyed_at NOT BETWEEN now() - $1::bigint * interval '1 microsecond' AND now() + $1::bigint * interval '1 microsecond'
    FOR UPDATE SKIP LOCKED
), found AS MATERIALIZED (
    SELECT coalesce(sum(events), 0) AS events, coalesce(sum(bytes), 0) AS bytes
    FROM waybill.batches WHERE EXISTS (SELECT FROM old)
)
UPDATE waybill.backlog b SET events = found.events, bytes = found.bytes, surveyed_at = now()
FROM old, found WHERE b.one = old.one
