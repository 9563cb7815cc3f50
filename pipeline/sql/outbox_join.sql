-- Makes this session a taker: the lock is held until it ends. See outbox_takers.sql.
SELECT pg_advisory_lock_shared('waybill.outbox'::regclass::oid::integer, 16)
