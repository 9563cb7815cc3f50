-- The oldest batches of one lane that wait for a sink, have not expired and are no longer
-- queued for it. It may walk over millions that are queued, and locks nothing. What was queued
-- in the future, by a clock that jumped back since, may be queued or not: it is taken once.
-- $1: lane; $2, $3: sink, and the time before which a batch queued for it is stale;
-- $4: batches at most; $5: the grace period in microseconds.
SELECT b.batch, b.bytes
FROM waybill.batches b
WHERE b.lane = $1::smallint AND (b.expires_at IS NULL OR b.expires_at > now()) AND EXISTS (
    SELECT FROM unnest($2::text[], $3::timestamptz[]) AS w(sink, before)
    WHERE w.sink = ANY (b.waiting_for)
      AND (b.queued_at < w.before OR b.queued_at > now() + $5::bigint * interval '1 microsecond'))
ORDER BY b.batch
LIMIT $4::integer
