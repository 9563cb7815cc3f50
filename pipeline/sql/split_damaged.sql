-- The damaged events of a batch, as dead letters of the sinks that lack them. Where the row is
-- missing nothing is known of an event but that it was there; seqnum 1 stands for none. A requeued
-- event goes back to its own dead letter, which keeps what it holds.
-- $1: batch; $2, $3: positions and what is wrong.
INSERT INTO waybill.dead_letters AS d
    (position, token, sink, code, reason, accepted_at, lane, source, type, event_id, seqnum, event)
SELECT coalesce(b.origin_position, r.position), coalesce(b.origin_token, b.token), s.sink, 'DAMAGED', r.reason,
       b.accepted_at, b.lane, coalesce(e.source, ''), coalesce(e.type, ''), coalesce(e.event_id, ''), coalesce(e.seqnum, 1),
       coalesce(e.event, '')
FROM unnest($2::bigint[], $3::text[]) AS r(position, reason)
CROSS JOIN waybill.batches b
CROSS JOIN unnest(b.waiting_for) AS s(sink)
LEFT JOIN waybill.events e ON e.position = r.position
WHERE b.batch = $1::bigint
ON CONFLICT (position, token, sink) DO UPDATE
SET code = excluded.code, reason = excluded.reason, failed_at = now(),
    requeued_at = NULL
RETURNING d.sink
