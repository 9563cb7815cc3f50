-- Receipts for batches that are gone: where they expired, the sink took them after all.
-- $1..$3: batch, token, sink; $4: positions that the sink refused.
UPDATE waybill.dead_letters d
SET delivered_late_at = now()
FROM unnest($1::bigint[], $2::bigint[], $3::text[]) AS r(batch, token, sink)
WHERE d.position >= r.batch << 12 AND d.position < (r.batch + 1) << 12
  AND d.token = r.token AND d.sink = r.sink
  AND d.code = 'expired' AND d.delivered_late_at IS NULL
  AND d.position <> ALL ($4::bigint[])
