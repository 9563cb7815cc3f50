-- Moves batches past their TTL into dead_letters, one row per sink that lacks them: the
-- oldest first, up to a number of events, and one batch at least. An event whose row is missing
-- moves too, as a damaged one, with as much as is known of it; seqnum 1 stands for none. One that was
-- requeued goes back to its own dead letter, which still holds it.
-- $1: batches at most; $2: events.
WITH candidate AS MATERIALIZED (
    SELECT b.batch, sum(b.events) OVER (ORDER BY b.batch) - b.events AS preceding
    FROM (SELECT batch, events FROM waybill.batches WHERE expires_at < now() ORDER BY batch LIMIT $1::integer) AS b
), due AS MATERIALIZED (
    SELECT batch, token, lane, events, accepted_at, waiting_for, origin_position, origin_token
    FROM waybill.batches
    WHERE batch = ANY (ARRAY(SELECT batch FROM candidate WHERE preceding < $2::bigint)) AND expires_at < now()
    ORDER BY batch
    FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM waybill.batches b WHERE b.batch = ANY (ARRAY(SELECT batch FROM due))
), taken AS (
    DELETE FROM waybill.events
    WHERE ctid = ANY (ARRAY(
        SELECT e.ctid
        FROM due d CROSS JOIN LATERAL (
            SELECT ctid FROM waybill.events
            WHERE position >= d.batch << 12 AND position < (d.batch + 1) << 12 OFFSET 0) AS e))
    RETURNING position, source, type, event_id, seqnum, event
), event AS (
    SELECT d.batch, e.position, 'expired' AS code, 'not delivered within its time to live' AS reason,
           e.source, e.type, e.event_id, e.seqnum, e.event
    FROM taken e JOIN due d ON d.batch = e.position >> 12
    UNION ALL
    SELECT d.batch, d.batch << 12 | i.index, 'DAMAGED',
           'not delivered within its time to live, and its row is missing from the table events: its source, type, id and seqnum are unknown',
           '', '', '', 1, ''
    FROM due d CROSS JOIN LATERAL generate_series(0, d.events - 1) AS i(index)
    WHERE d.batch << 12 | i.index NOT IN (SELECT position FROM taken)
), dead AS (
    INSERT INTO waybill.dead_letters AS l
        (position, token, sink, code, reason, accepted_at, lane, source, type, event_id, seqnum, event)
    SELECT coalesce(d.origin_position, e.position), coalesce(d.origin_token, d.token), s.sink, e.code, e.reason,
           d.accepted_at, d.lane, e.source, e.type, e.event_id, e.seqnum, e.event
    FROM event e JOIN due d ON d.batch = e.batch CROSS JOIN unnest(d.waiting_for) AS s(sink)
    ON CONFLICT (position, token, sink) DO UPDATE
    SET code = excluded.code, reason = excluded.reason, failed_at = now(),
        requeued_at = NULL
    RETURNING l.sink, l.code
)
SELECT sink, code, count(*) FROM dead GROUP BY sink, code
