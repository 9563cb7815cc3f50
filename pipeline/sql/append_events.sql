-- The events of a small flush, as a further part of append.sql.
-- $9..$16: batch (from 1), index in it, key (from 1), source, type, id, how many of its key follow,
-- encoding
, stored AS (
    INSERT INTO waybill.events (position, source, type, event_id, seqnum, event)
    SELECT (b.batch << 12) | e.index, e.source, e.type, e.event_id, h.seqnums[e.key] - e.back, e.event
    FROM unnest($9::bigint[], $10::integer[], $11::integer[], $12::text[], $13::text[], $14::text[], $15::bigint[], $16::bytea[])
         AS e(n, index, key, source, type, event_id, back, event)
    JOIN numbered b ON b.n = e.n
    CROSS JOIN head h
)
