-- What still waits, for batches locked by settle_lock. Sink names hold no comma.
UPDATE waybill.batches b
SET waiting_for = string_to_array(r.remaining, ',')
FROM unnest($1::bigint[], $2::text[]) AS r(batch, remaining)
WHERE b.batch = r.batch
