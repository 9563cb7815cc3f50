-- Ends the sessions that have waited for the rest of a COPY for too long, and with them the
-- locks on the heads: neither statement_timeout nor idle_in_transaction_session_timeout ends a
-- COPY that waits for its client. Sessions of roles that this one may not end are left alone.
-- $1: how long a COPY may take, in microseconds.
SELECT count(pg_terminate_backend(pid))
FROM pg_stat_activity
WHERE datname = current_database() AND application_name = 'waybill' AND pg_has_role(usesysid, 'USAGE')
  AND state = 'active' AND wait_event = 'ClientRead' AND query LIKE 'COPY waybill.events %'
  AND query_start < clock_timestamp() - $1::bigint * interval '1 microsecond'
