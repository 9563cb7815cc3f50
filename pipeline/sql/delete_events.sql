-- By ranges of positions, [from, to): one index range each.
DELETE FROM waybill.events e
USING unnest($1::bigint[], $2::bigint[]) AS r(first, past)
WHERE e.position >= r.first AND e.position < r.past
