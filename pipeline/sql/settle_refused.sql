-- Events that a sink refused for good. A requeued event goes back to its own dead letter.
-- $1..$4: position, sink, code, reason.
INSERT INTO waybill.dead_letters AS d
    (position, token, sink, code, reason, accepted_at, lane, source, type, event_id, seqnum, event)
SELECT coalesce(b.origin_position, e.position), coalesce(b.origin_token, b.token),
       r.sink, r.code, r.reason, b.accepted_at, b.lane, e.source, e.type, e.event_id, e.seqnum, e.event
FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[]) AS r(position, sink, code, reason)
CROSS JOIN LATERAL (SELECT * FROM waybill.events WHERE position = r.position OFFSET 0) AS e
CROSS JOIN LATERAL (SELECT * FROM waybill.batches WHERE batch = r.position >> 12 OFFSET 0) AS b
ON CONFLICT (position, token, sink) DO UPDATE
SET code = excluded.code, reason = excluded.reason, failed_at = now(),
    requeued_at = NULL
