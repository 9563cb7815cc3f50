-- Moves the heads of a flush and takes its batch numbers. The events of a large flush follow by
-- COPY in the same transaction; a small one has append_events.sql where it says "stored", and
-- is one statement and so one round trip. The error WB001 says that a key has no head yet
-- (add_keys.sql).
-- $1..$3: keys: source, type, number of events
-- $4..$8: batches in order: token, lane, events, bytes, and the TTL in microseconds (NULL: never)
-- Returns a row per batch (n, number, queued_at, expires_at) and a row of the keys' seqnums, in
-- their order.
WITH head AS MATERIALIZED (
    SELECT waybill.move_heads($1::text[], $2::text[], $3::bigint[]) AS seqnums
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
SELECT b.n, b.batch, a.queued_at, a.expires_at, NULL::bigint[]
FROM numbered b JOIN appended a ON a.batch = b.batch
UNION ALL
SELECT NULL, NULL, NULL, NULL, seqnums FROM head
