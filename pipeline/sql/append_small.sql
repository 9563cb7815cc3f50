-- One flush of few events, whole, in one statement and so in one round trip.
-- $1..$3 keys in byte order: source, type, number of events
-- $4..$8 batches in order: token, lane, events, bytes, and the TTL in microseconds (NULL: never)
-- $9..   events: batch (1-based), index in it, source, type, id, offset within the key, encoding
-- Returns a row per batch (n, number, queued_at, expires_at) and a row per key (source, type, seqnum).
WITH head AS (
    INSERT INTO waybill.key_heads AS h (source, type, seqnum)
    SELECT k.source, k.type, k.events
    FROM unnest($1::text[], $2::text[], $3::bigint[]) WITH ORDINALITY AS k(source, type, events, n)
    ORDER BY k.n
    ON CONFLICT (source, type) DO UPDATE SET seqnum = h.seqnum + excluded.seqnum
    RETURNING h.source, h.type, h.seqnum
), numbered AS MATERIALIZED (
    SELECT b.n, nextval('waybill.batch_numbers') AS batch, b.token, b.lane, b.events, b.bytes
    FROM unnest($4::bigint[], $5::smallint[], $6::smallint[], $7::bigint[])
         WITH ORDINALITY AS b(token, lane, events, bytes, n)
    ORDER BY b.n
), appended AS (
    INSERT INTO waybill.batches (batch, token, lane, events, bytes, expires_at, waiting_for)
    SELECT b.batch, b.token, b.lane, b.events, b.bytes,
           now() + $8::bigint * interval '1 microsecond',
           ARRAY(SELECT name FROM waybill.sinks ORDER BY name)
    FROM numbered b
    RETURNING batch, queued_at, expires_at
), stored AS (
    INSERT INTO waybill.events (position, source, type, event_id, seqnum, event)
    SELECT (b.batch << 12) | e.index, e.source, e.type, e.event_id, h.seqnum - e.back, e.event
    FROM unnest($9::bigint[], $10::integer[], $11::text[], $12::text[], $13::text[], $14::bigint[], $15::bytea[])
         AS e(n, index, source, type, event_id, back, event)
    JOIN numbered b ON b.n = e.n
    JOIN head h ON h.source = e.source COLLATE "C" AND h.type = e.type COLLATE "C"
)
SELECT b.n, b.batch, a.queued_at, a.expires_at, NULL, NULL, NULL::bigint
FROM numbered b JOIN appended a ON a.batch = b.batch
UNION ALL
SELECT NULL, NULL, NULL, NULL, source, type, seqnum FROM head
