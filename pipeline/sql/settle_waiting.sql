-- What still waits, for batches locked by settle_lock. $1: batches; $2: the sinks.
UPDATE waybill.batches SET waiting_for = $2::text[] WHERE batch = ANY ($1::bigint[])
