-- Moves batches past their TTL into dead_letters, one row per sink that lacks them: the
-- oldest first, up to a number of events, and one batch at least. A requeued event whose row is
-- missing cannot move: its dead letter, which still holds it, is dead again.
-- $1: batches at most; $2: events.
WITH candidate AS MATERIALIZED (
    SELECT b.batch, sum(b.events) OVER (ORDER BY b.batch) - b.events AS preceding
    FROM (SELECT batch, events FROM waybill.batches WHERE expires_at < now() ORDER BY batch LIMIT $1::integer) AS b
), due AS MATERIALIZED (
    SELECT batch, token, lane, accepted_at, waiting_for, origin_position, origin_token
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
    SELECT d.batch, coalesce(d.origin_position, e.position) AS position, coalesce(d.origin_token, d.token) AS token,
           d.accepted_at, d.lane, d.waiting_for, e.source, e.type, e.event_id, e.seqnum, e.event
    FROM taken e JOIN due d ON d.batch = e.position >> 12
), dead AS (
    INSERT INTO waybill.dead_letters AS l
        (position, token, sink, code, reason, accepted_at, lane, source, type, event_id, seqnum, event)
    SELECT e.position, e.token, s.sink, 'expired', 'not delivered within its time to live',
           e.accepted_at, e.lane, e.source, e.type, e.event_id, e.seqnum, e.event
    FROM event e CROSS JOIN unnest(e.waiting_for) AS s(sink)
    ON CONFLICT (position, token, sink) DO UPDATE
    SET code = excluded.code, reason = excluded.reason, failed_at = now(),
        requeued_at = NULL
    RETURNING l.sink
), unlinked AS (
    UPDATE waybill.dead_letters l
    SET requeued_at = NULL
    FROM due d
    WHERE d.origin_position IS NOT NULL AND d.batch NOT IN (SELECT batch FROM event)
      AND l.requeued_batch = d.batch AND l.requeued_token = d.token
)
SELECT sink, count(*) FROM dead GROUP BY sink
