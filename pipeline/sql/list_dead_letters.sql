-- Dead letters for people to look at, the oldest failure first.
-- $1: sink ('': any); $2: code ('': any); $3: rows at most.
SELECT position, sink, code, reason, failed_at, requeued_at, delivered_late_at,
       source, type, event_id, seqnum, accepted_at, event
FROM waybill.dead_letters
WHERE ($1::text = '' OR sink = $1::text) AND ($2::text = '' OR code = $2::text)
ORDER BY failed_at, position, sink
LIMIT $3::integer
