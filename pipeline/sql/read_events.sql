-- The events of some batches, in order. $1, $2: ranges of positions, [from, to).
-- OFFSET 0 keeps the planner from another order of the loops, which it takes for as good where
-- its statistics are of an empty table: here and in the other statements.
SELECT e.position, e.source, e.type, e.event_id, e.seqnum, e.event
FROM unnest($1::bigint[], $2::bigint[]) AS r(first, past)
CROSS JOIN LATERAL (
    SELECT * FROM waybill.events WHERE position >= r.first AND position < r.past OFFSET 0) AS e
ORDER BY e.position
