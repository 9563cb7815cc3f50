-- Batches do not wait for sinks that are no longer in the table of sinks. Those that then
-- wait for nobody are deleted by the caller. $1: batches at most.
WITH orphan AS MATERIALIZED (
    SELECT batch FROM waybill.batches b
    WHERE NOT b.waiting_for <@ ARRAY(SELECT name FROM waybill.sinks)
    ORDER BY batch LIMIT $1::integer
    FOR UPDATE SKIP LOCKED
)
UPDATE waybill.batches b
SET waiting_for = ARRAY(SELECT w FROM unnest(b.waiting_for) AS w
                        WHERE w IN (SELECT name FROM waybill.sinks) ORDER BY w)
FROM orphan o
WHERE b.batch = o.batch AND b.batch = ANY (ARRAY(SELECT batch FROM orphan))
RETURNING b.batch, b.waiting_for = '{}'
