-- Receipts for batches that are gone: of what became a dead letter, the sink took all after all but
-- what this very receipt says that it refused.
-- $1..$4: batch, token, sink, and the indexes that the sink refused, as the text of an array.
UPDATE waybill.dead_letters d
SET delivered_late_at = now()
FROM (SELECT batch, token, sink, refused::integer[] AS refused
      FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::text[]) AS r(batch, token, sink, refused) OFFSET 0) AS r
WHERE d.position >= r.batch << 12 AND d.position < (r.batch + 1) << 12
  AND d.token = r.token AND d.sink = r.sink
  AND d.code IN ('expired', 'DAMAGED') AND d.delivered_late_at IS NULL
  AND (d.position & 4095) <> ALL (r.refused)
