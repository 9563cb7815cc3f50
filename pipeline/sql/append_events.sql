-- The events of a small flush, as a further part of append.sql.
-- $9..$15: batch (from 1), index in it, source, type, id, how many of its key follow, encoding
, stored AS (
    INSERT INTO waybill.events (position, source, type, event_id, seqnum, event)
    SELECT (b.batch << 12) | e.index, e.source, e.type, e.event_id, h.seqnum - e.back, e.event
    FROM unnest($9::bigint[], $10::integer[], $11::text[], $12::text[], $13::text[], $14::bigint[], $15::bytea[])
         AS e(n, index, source, type, event_id, back, event)
    JOIN numbered b ON b.n = e.n
    JOIN head h ON h.source = e.source COLLATE "C" AND h.type = e.type COLLATE "C"
)
