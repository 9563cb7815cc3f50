-- What is in the outbox and was not read before, in the order of transactions and, within them, of ids.
-- $1, $2: transactions that were in progress at earlier reads, and the last id that was read of each
-- $3, $4: of all others, transaction and id of the last row that was read
-- $5: the shards to take from
-- $6, $7: the most rows, and the most bytes of them, but for one row
-- $8, $9: of all others, transaction and id beyond which nothing is looked for. That transaction is a part of its own: a
-- comparison of rows, (xid, id) <= ($8, $9), has Postgres walk over all the keys of $8 in the index, whatever $9 is.
-- Returns, at least once: this snapshot, the number of rows up to the limit of rows, and a row, if there is one, in
-- any order: a sort would carry the events. OFFSET 0 has them looked up, whatever size the table is thought to have.
WITH found AS MATERIALIZED (
    SELECT f.xid, f.id, sum(f.bytes) OVER (ORDER BY f.xid, f.id) AS bytes, row_number() OVER (ORDER BY f.xid, f.id) AS n,
           count(*) OVER () AS rows
    FROM (
        SELECT o.* FROM unnest($1::bigint[], $2::bigint[]) AS p(xid, id)
        CROSS JOIN LATERAL (
            SELECT xid, id, coalesce(octet_length(coalesce(event, data)), 0) + coalesce(pg_column_size(attributes), 0) AS bytes FROM waybill.outbox
            WHERE xid = p.xid AND id > p.id AND shard = ANY ($5::smallint[]) AND refused_at IS NULL
            ORDER BY xid, id LIMIT $6::integer) AS o
        UNION ALL
        (SELECT xid, id, coalesce(octet_length(coalesce(event, data)), 0) + coalesce(pg_column_size(attributes), 0) AS bytes FROM waybill.outbox
         WHERE (xid, id) > ($3::bigint, $4::bigint) AND xid < $8::bigint AND shard = ANY ($5::smallint[]) AND refused_at IS NULL
         ORDER BY xid, id LIMIT $6::integer)
        UNION ALL
        (SELECT xid, id, coalesce(octet_length(coalesce(event, data)), 0) + coalesce(pg_column_size(attributes), 0) AS bytes FROM waybill.outbox
         WHERE xid = $8::bigint AND id > CASE WHEN $3::bigint < $8::bigint THEN '-9223372036854775808' ELSE $4::bigint END AND id <= $9::bigint
           AND shard = ANY ($5::smallint[]) AND refused_at IS NULL
         ORDER BY xid, id LIMIT $6::integer)
        ORDER BY 1, 2 LIMIT $6::integer
    ) AS f
)
SELECT pg_current_snapshot()::text, f.rows, o.xid, o.id, extract(epoch FROM clock_timestamp() - o.emitted_at)::float8,
       o.source, o.type, o.event_id, o.event, o.data, o.is_text, o.attributes
FROM (VALUES (1)) AS one (row)
LEFT JOIN (found f CROSS JOIN LATERAL (
    SELECT * FROM waybill.outbox WHERE xid = f.xid AND id = f.id AND (f.n = 1 OR f.bytes <= $7::bigint) OFFSET 0) AS o) ON true
