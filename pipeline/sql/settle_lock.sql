-- The batches that receipts speak of, locked in one order. A number alone is not enough:
-- a restore may have given it to another batch.
-- $1, $2: number and token, one pair per batch.
SELECT b.batch, b.token, b.waiting_for, b.events, b.origin_position IS NOT NULL
FROM unnest($1::bigint[], $2::bigint[]) AS r(batch, token)
JOIN waybill.batches b ON b.batch = r.batch AND b.token = r.token
ORDER BY b.batch
FOR UPDATE OF b
