-- The sound events of a damaged batch, each as a batch of its own that waits for the same sinks,
-- as requeued dead letters are. queued_at lies in the past: the janitor's next pass finds them stale.
-- $1: batch; $2: positions.
WITH sound AS MATERIALIZED (
    SELECT b.lane, b.accepted_at, b.expires_at, b.waiting_for, e.source, e.type, e.event_id, e.seqnum, e.event,
           coalesce(b.origin_position, e.position) AS origin_position, coalesce(b.origin_token, b.token) AS origin_token,
           nextval('waybill.batch_numbers') AS batch, (random() * 9223372036854775807)::bigint AS token
    FROM waybill.batches b, (SELECT * FROM waybill.events WHERE position = ANY ($2::bigint[]) ORDER BY position) AS e
    WHERE b.batch = $1::bigint
), queued AS (
    INSERT INTO waybill.batches (batch, token, lane, events, bytes, accepted_at, queued_at, expires_at,
                                 waiting_for, origin_position, origin_token)
    SELECT batch, token, lane, 1, length(event), accepted_at, 'epoch', expires_at, waiting_for, origin_position, origin_token
    FROM sound
)
INSERT INTO waybill.events (position, source, type, event_id, seqnum, event)
SELECT batch << 12, source, type, event_id, seqnum, event FROM sound
