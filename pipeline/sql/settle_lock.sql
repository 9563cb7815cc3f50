-- The batches that receipts speak of, locked in one order. A number alone is not enough, since
-- a restore may have given it to another batch: the caller compares the tokens.
-- $1: numbers.
SELECT b.batch, b.token, b.waiting_for, b.events, b.origin_position IS NOT NULL
FROM waybill.batches b
WHERE b.batch = ANY ($1::bigint[])
ORDER BY b.batch
FOR UPDATE OF b
