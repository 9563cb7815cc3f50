-- Puts dead letters back into the queue, each as a batch of one event that waits for its
-- own sink only, under its own id and seqnum. queued_at lies in the past: nothing is
-- queued yet, and the janitor's next pass finds it stale.
-- $1: sink; $2: code (NULL: any); $3: rows at most; $4: TTL in microseconds (NULL: never).
WITH letter AS MATERIALIZED (
    SELECT position, token, sink, lane, accepted_at, source, type, event_id, seqnum, event,
           nextval('waybill.batch_numbers') AS batch,
           (random() * 9223372036854775807)::bigint AS new_token
    FROM (
        SELECT * FROM waybill.dead_letters
        WHERE sink = $1::text AND ($2::text IS NULL OR code = $2::text)
          AND requeued_at IS NULL AND delivered_late_at IS NULL
        ORDER BY position, token
        LIMIT $3::integer
        FOR UPDATE SKIP LOCKED) AS waiting
), queued AS (
    INSERT INTO waybill.batches (batch, token, lane, events, bytes, accepted_at, queued_at, expires_at,
                                 waiting_for, origin_position, origin_token)
    SELECT batch, new_token, lane, 1, length(event), accepted_at, 'epoch',
           now() + $4::bigint * interval '1 microsecond', ARRAY[sink], position, token
    FROM letter
), stored AS (
    INSERT INTO waybill.events (position, source, type, event_id, seqnum, event)
    SELECT batch << 12, source, type, event_id, seqnum, event FROM letter
)
UPDATE waybill.dead_letters d
SET requeued_at = now(), requeued_batch = l.batch, requeued_token = l.new_token
FROM letter l
WHERE d.position = l.position AND d.token = l.token AND d.sink = l.sink
RETURNING d.position
