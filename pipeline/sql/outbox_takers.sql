-- How many takers are alive: each holds a lock that all of them share.
SELECT count(DISTINCT pid) FROM pg_locks
WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND classid = 'waybill.outbox'::regclass::oid AND objid = 16 AND objsubid = 2 AND granted
