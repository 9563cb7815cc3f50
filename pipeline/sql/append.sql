-- Moves the heads of a flush and takes its batch numbers. The events of a large flush follow by
-- COPY in the same transaction; a small one has append_events.sql where it says "stored", and
-- is one statement and so one round trip.
-- $1..$3: keys in byte order: source, type, number of events
-- $4..$8: batches in order: token, lane, events, bytes, and the TTL in microseconds (NULL: never)
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
)/* stored */
SELECT b.n, b.batch, a.queued_at, a.expires_at, NULL, NULL, NULL::bigint
FROM numbered b JOIN appended a ON a.batch = b.batch
UNION ALL
SELECT NULL, NULL, NULL, NULL, source, type, seqnum FROM head
