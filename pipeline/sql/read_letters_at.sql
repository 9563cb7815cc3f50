-- The dead letters of one position: one for each sink that lacks the event, and more where a
-- restore gave a batch number out twice. $1: position; $2: sink ('': any); $3: rows at most.
SELECT d.position, d.token, d.sink, d.code, d.reason, d.failed_at, d.requeued_at, d.requeued_batch, d.requeues,
       d.delivered_late_at, d.lane, d.source, d.type, d.event_id, d.seqnum, d.accepted_at, d.event
FROM waybill.dead_letters d
WHERE d.position = $1::bigint AND ($2::text = '' OR d.sink = $2::text)
ORDER BY d.token, d.sink
LIMIT $3::integer
