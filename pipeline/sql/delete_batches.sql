DELETE FROM waybill.batches WHERE batch = ANY ($1::bigint[])
