-- What append.sql does for a flush of one batch of one key, without the function and the joins that are
-- much of its time.
-- $1..$6: source, type, token, lane, bytes, and the TTL in microseconds (NULL: never)
-- $7, $8: ids, encodings
-- Returns the rows that append.sql does. A key without a head is the error that there is no seqnum.
WITH newest AS MATERIALIZED (
    SELECT h.page, h.version, k.place
    FROM (SELECT id / 32 AS page, (id % 32 + 1)::integer AS place FROM waybill.keys WHERE source = $1 AND type = $2) AS k
    CROSS JOIN LATERAL (
        SELECT page, version FROM waybill.heads WHERE page = k.page ORDER BY version DESC LIMIT 1) AS h
), head AS (
    -- Where another has moved it meanwhile, its newest version is later than the one that was found.
    -- As values of subqueries they are known to be looked up by, whatever the planner thinks of joins.
    UPDATE waybill.heads h
    SET version = h.version + ((h.seqnums[n.place] + n.place) % 16 + cardinality($7::text[]) >= 16)::integer,
        seqnums[n.place] = h.seqnums[n.place] + cardinality($7::text[])
    FROM newest n
    WHERE h.page = (SELECT page FROM newest) AND h.version >= (SELECT version FROM newest)
    RETURNING h.seqnums[n.place] AS seqnum
), appended AS (
    INSERT INTO waybill.batches (batch, token, lane, events, bytes, expires_at, waiting_for)
    VALUES (nextval('waybill.batch_numbers'), $3, $4, cardinality($7::text[]), $5, now() + $6::bigint * interval '1 microsecond',
            ARRAY(SELECT name FROM waybill.sinks ORDER BY name))
    RETURNING batch, queued_at, expires_at
), stored AS (
    INSERT INTO waybill.events (position, source, type, event_id, seqnum, event)
    SELECT (a.batch << 12) | (e.n - 1), $1, $2, e.id, h.seqnum - cardinality($7::text[]) + e.n, e.event
    FROM unnest($7::text[], $8::bytea[]) WITH ORDINALITY AS e(id, event, n)
    CROSS JOIN appended a LEFT JOIN head h ON true
)/* stored */
SELECT 1::bigint, batch, queued_at, expires_at, NULL::bigint[] FROM appended
UNION ALL
SELECT NULL, NULL, NULL, NULL, ARRAY[seqnum] FROM head
