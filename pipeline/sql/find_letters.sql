-- One step through the dead letters, the oldest failure first: a page of the index, and those of
-- its letters that are wanted. The page bounds what the statement reads, however few are wanted.
-- No join: with the statistics of an empty table one would be planned the wrong way round.
-- $1, $2: failed_at from (NULL: any) and before; $3..$6: behind this letter (failed_at, position,
-- token, sink); $7: letters of a page; $8: wanted ones at most.
-- $9, $10: sink and code ('': any); $11, $12: source, and whether it is a beginning; $13, $14: the
-- same of type; $15: event id; $16: states.
-- Returns the wanted ones, and a row without a lane for the page: its last letter and its size.
WITH page AS MATERIALIZED (
    SELECT d.failed_at, d.position, d.token, d.sink, d.lane, d.source, d.type, octet_length(d.event) AS bytes,
           ($9::text = '' OR d.sink = $9::text) AND ($10::text = '' OR d.code = $10::text)
           AND CASE WHEN $12::boolean THEN starts_with(d.source, $11::text) ELSE $11::text = '' OR d.source = $11::text END
           AND CASE WHEN $14::boolean THEN starts_with(d.type, $13::text) ELSE $13::text = '' OR d.type = $13::text END
           AND ($15::text = '' OR d.event_id = $15::text)
           AND CASE WHEN d.requeued_at IS NOT NULL THEN 'requeued'
                    WHEN d.delivered_late_at IS NOT NULL THEN 'late' ELSE 'dead' END = ANY ($16::text[]) AS wanted
    FROM waybill.dead_letters d
    WHERE d.failed_at >= coalesce($1::timestamptz, '-infinity') AND d.failed_at < $2::timestamptz
      AND (d.failed_at, d.position, d.token, d.sink) > ($3::timestamptz, $4::bigint, $5::bigint, $6::text)
    ORDER BY d.failed_at, d.position, d.token, d.sink
    LIMIT $7::integer
)
(SELECT failed_at, position, token, sink, lane, source, type, bytes::bigint FROM page WHERE wanted
 ORDER BY failed_at, position, token, sink LIMIT $8::integer)
UNION ALL
(SELECT failed_at, position, token, sink, NULL, NULL, NULL, (SELECT count(*) FROM page) FROM page
 ORDER BY failed_at DESC, position DESC, token DESC, sink DESC LIMIT 1)
