-- By ranges of positions, [from, to): one index range each. Their rows do not move, so that a
-- row's place is as good as its key.
DELETE FROM waybill.events
WHERE ctid = ANY (ARRAY(
    SELECT e.ctid
    FROM unnest($1::bigint[], $2::bigint[]) AS r(first, past)
    CROSS JOIN LATERAL (
        SELECT ctid FROM waybill.events WHERE position >= r.first AND position < r.past OFFSET 0) AS e))
