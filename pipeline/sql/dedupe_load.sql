-- The newest rows of the log within the window, oldest first.
-- $1: how many fingerprints there is room for
-- $2: a transaction before which there is nothing more than that
-- Returns the age in seconds and the fingerprints.
SELECT extract(epoch FROM now() - l.at)::float8, l.fingerprints
FROM (
    SELECT at, events, fingerprints, sum(events) OVER (ORDER BY at DESC, xid DESC ROWS UNBOUNDED PRECEDING) AS newer
    FROM waybill.dedupe_log
    WHERE at > now() - (SELECT dedupe_window FROM waybill.pipeline) AND xid >= $2::text::xid8
) l
WHERE l.newer - l.events < $1
ORDER BY l.at
