-- Receipts for batches of requeued events that expired again: the sink took them after all.
-- $1..$3: batch, token, sink; $4: positions that the sink refused.
UPDATE waybill.dead_letters d
SET delivered_late_at = now()
FROM unnest($1::bigint[], $2::bigint[], $3::text[]) AS r(batch, token, sink)
WHERE d.requeued_batch = r.batch AND d.requeued_token = r.token AND d.sink = r.sink
  AND d.requeued_at IS NULL AND d.code = 'expired' AND d.delivered_late_at IS NULL
  AND r.batch << 12 <> ALL ($4::bigint[])
