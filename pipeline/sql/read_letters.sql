-- Dead letters for people to look at, in the order asked for.
-- $1..$3: position, token, sink; $4: whether their events are wanted.
SELECT d.position, d.token, d.sink, d.code, d.reason, d.failed_at, d.requeued_at, d.requeued_batch, d.requeues,
       d.delivered_late_at, d.lane, d.source, d.type, d.event_id, d.seqnum, d.accepted_at, CASE WHEN $4::boolean THEN d.event END
FROM unnest($1::bigint[], $2::bigint[], $3::text[]) WITH ORDINALITY AS k(position, token, sink, n)
JOIN waybill.dead_letters d ON d.position = k.position AND d.token = k.token AND d.sink = k.sink
ORDER BY k.n
