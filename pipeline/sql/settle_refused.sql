-- Events that a sink refused for good. A requeued event goes back to its own dead letter. Where the
-- row is missing the refusal is kept, with as much as is known of the event; seqnum 1 stands for none.
-- $1..$4: position, sink, code, reason.
INSERT INTO waybill.dead_letters AS d
    (position, token, sink, code, reason, accepted_at, lane, source, type, event_id, seqnum, event)
SELECT coalesce(b.origin_position, r.position), coalesce(b.origin_token, b.token), r.sink, r.code,
       CASE WHEN e.position IS NULL THEN r.reason || ' (its row is missing from the table events)' ELSE r.reason END,
       b.accepted_at, b.lane, coalesce(e.source, ''), coalesce(e.type, ''), coalesce(e.event_id, ''), coalesce(e.seqnum, 1),
       coalesce(e.event, '')
FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[]) AS r(position, sink, code, reason)
CROSS JOIN LATERAL (SELECT * FROM waybill.batches WHERE batch = r.position >> 12 OFFSET 0) AS b
LEFT JOIN LATERAL (SELECT * FROM waybill.events WHERE position = r.position OFFSET 0) AS e ON true
ON CONFLICT (position, token, sink) DO UPDATE
SET code = excluded.code, reason = excluded.reason, failed_at = now(),
    requeued_at = NULL
