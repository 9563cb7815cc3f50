-- Receipts for batches of requeued events that expired again, or whose row was damaged: the sink took them after all.
-- $1..$4: batch, token, sink, and the indexes that the sink refused, as the text of an array.
UPDATE waybill.dead_letters d
SET delivered_late_at = now()
FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[]) AS r(batch, token, sink, refused)
WHERE d.requeued_batch = ANY ($1::bigint[]) AND d.requeued_batch = r.batch AND d.requeued_token = r.token AND d.sink = r.sink
  AND d.requeued_at IS NULL AND d.code IN ('expired', 'DAMAGED') AND d.delivered_late_at IS NULL
  AND 0 <> ALL (r.refused::integer[])
