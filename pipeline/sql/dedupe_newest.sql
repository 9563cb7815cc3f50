-- The rows of the log within the window, newest first: transaction and number of fingerprints. Those with numbers that this
-- cluster has not reached were restored here: they are older than all others, and not among these.
SELECT l.xid::text, l.events
FROM waybill.dedupe_log l
WHERE l.at > now() - (SELECT dedupe_window FROM waybill.pipeline) AND l.events > 0
    AND l.xid < pg_snapshot_xmax(pg_current_snapshot())
ORDER BY l.xid DESC
