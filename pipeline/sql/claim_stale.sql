-- Takes those of the batches that find_stale found which are still stale.
-- $1: batches; $2, $3: sink, and the time before which a batch queued for it is stale;
-- $4: the grace period in microseconds.
WITH stale AS MATERIALIZED (
    SELECT b.batch, ARRAY(
        SELECT w.sink FROM unnest($2::text[], $3::timestamptz[]) AS w(sink, before)
        WHERE w.sink = ANY (b.waiting_for)
          AND (b.queued_at < w.before OR b.queued_at > now() + $4::bigint * interval '1 microsecond')
        ORDER BY w.sink) AS sinks
    FROM waybill.batches b
    WHERE b.batch = ANY ($1::bigint[]) AND EXISTS (
        SELECT FROM unnest($2::text[], $3::timestamptz[]) AS w(sink, before)
        WHERE w.sink = ANY (b.waiting_for)
          AND (b.queued_at < w.before OR b.queued_at > now() + $4::bigint * interval '1 microsecond'))
    ORDER BY b.batch
    FOR UPDATE OF b SKIP LOCKED
)
UPDATE waybill.batches b
SET attempts = b.attempts + 1, queued_at = now()
FROM stale s
WHERE b.batch = s.batch AND b.batch = ANY (ARRAY(SELECT batch FROM stale))
RETURNING b.batch, b.token, b.lane, b.events, b.bytes, b.attempts, b.accepted_at, b.queued_at,
          b.expires_at, s.sinks, b.origin_position, b.origin_token, b.origin_lane
