-- Dead letters past their own TTL, but for those on their way again.
-- $1: TTL in microseconds; $2: rows at most.
DELETE FROM waybill.dead_letters d
WHERE (d.position, d.token, d.sink) IN (
    SELECT position, token, sink FROM waybill.dead_letters
    WHERE failed_at < now() - $1::bigint * interval '1 microsecond' AND requeued_at IS NULL
    ORDER BY failed_at
    LIMIT $2::integer
    FOR UPDATE SKIP LOCKED)
