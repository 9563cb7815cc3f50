-- Dead letters whose requeued batch is deleted without a receipt, because its sink was removed:
-- they are dead again, and can be requeued if the sink comes back. $1: batches.
UPDATE waybill.dead_letters
SET requeued_at = NULL
WHERE requeued_batch = ANY ($1::bigint[])
