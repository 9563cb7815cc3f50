-- The events of some batches, in order. $1, $2: ranges of positions, [from, to).
SELECT e.position, e.source, e.type, e.event_id, e.seqnum, e.event
FROM unnest($1::bigint[], $2::bigint[]) AS r(first, past)
JOIN waybill.events e ON e.position >= r.first AND e.position < r.past
ORDER BY e.position
