-- Puts dead letters back into the queue, each as a batch of one event that waits for its
-- own sink only, under its own id and seqnum. queued_at lies in the past: nothing is
-- queued yet, and the janitor's next pass finds it stale. A letter that changed since it was
-- looked at is left alone, and so is one whose sink is no more. Locks are taken in one order.
-- $1..$5: failed_at, position, token and sink of each letter, and the lane it goes into;
-- $6: TTL in microseconds (NULL: never).
WITH letter AS MATERIALIZED (
    SELECT position, token, sink, lane, origin_lane, accepted_at, source, type, event_id, seqnum, event,
           nextval('waybill.batch_numbers') AS batch,
           (random() * 9223372036854775807)::bigint AS new_token
    FROM (
        SELECT d.position, d.token, d.sink, k.lane, d.lane AS origin_lane, d.accepted_at, d.source, d.type, d.event_id, d.seqnum, d.event
        FROM unnest($1::timestamptz[], $2::bigint[], $3::bigint[], $4::text[], $5::smallint[])
             AS k(failed_at, position, token, sink, lane)
        JOIN waybill.dead_letters d ON d.position = k.position AND d.token = k.token AND d.sink = k.sink
        WHERE d.failed_at = k.failed_at AND d.requeued_at IS NULL AND d.delivered_late_at IS NULL
          AND EXISTS (SELECT FROM waybill.sinks s WHERE s.name = d.sink)
        ORDER BY d.position, d.token, d.sink
        FOR UPDATE OF d) AS waiting
), queued AS (
    INSERT INTO waybill.batches (batch, token, lane, events, bytes, accepted_at, queued_at, expires_at,
                                 waiting_for, origin_position, origin_token, origin_lane)
    SELECT batch, new_token, lane, 1, length(event), accepted_at, 'epoch',
           now() + $6::bigint * interval '1 microsecond', ARRAY[sink], position, token, origin_lane
    FROM letter
), stored AS (
    INSERT INTO waybill.events (position, source, type, event_id, seqnum, event)
    SELECT batch << 12, source, type, event_id, seqnum, event FROM letter
)
UPDATE waybill.dead_letters d
SET requeued_at = now(), requeued_batch = l.batch, requeued_token = l.new_token, requeues = d.requeues + 1
FROM letter l
WHERE d.position = l.position AND d.token = l.token AND d.sink = l.sink
