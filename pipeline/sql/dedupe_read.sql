-- What has been logged by others since an earlier snapshot: the rows of transactions that had
-- not begun then, and, where it says "in progress", dedupe_read_in_progress.sql. A flush in one
-- round trip has dedupe_guard.sql where it says "guard".
-- $1: the earlier snapshot
-- $2: transactions whose rows are known
-- Returns, at least once: this snapshot, when the server started, this transaction, and the
-- fingerprints of a row, if there is one.
WITH heard AS MATERIALIZED (
    SELECT fingerprints FROM waybill.dedupe_log
    WHERE xid >= pg_snapshot_xmax($1::text::pg_snapshot)
      AND xid <> pg_current_xact_id() AND xid <> ALL ($2::text[]::xid8[])/* in progress */
)
SELECT pg_current_snapshot()::text, pg_postmaster_start_time(), pg_current_xact_id()::text, heard.fingerprints
FROM (VALUES (1)) AS one (row)
LEFT JOIN heard ON true/* guard */
