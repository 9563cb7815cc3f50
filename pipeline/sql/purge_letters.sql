-- Deletes dead letters that an operator picked, but for those on their way again, which only a
-- receipt clears, and for those that changed since they were looked at. One order of locks.
-- $1..$4: failed_at, position, token, sink.
WITH letter AS MATERIALIZED (
    SELECT d.position, d.token, d.sink
    FROM unnest($1::timestamptz[], $2::bigint[], $3::bigint[], $4::text[]) AS k(failed_at, position, token, sink)
    JOIN waybill.dead_letters d ON d.position = k.position AND d.token = k.token AND d.sink = k.sink
    WHERE d.failed_at = k.failed_at AND d.requeued_at IS NULL
    ORDER BY d.position, d.token, d.sink
    FOR UPDATE OF d
)
DELETE FROM waybill.dead_letters d
USING letter l
WHERE d.position = l.position AND d.token = l.token AND d.sink = l.sink
