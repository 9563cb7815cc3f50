-- Says that the takers of shards sleep, or no longer do. $1: shards, as bits; $2: whether they do
SELECT waybill.outbox_sleep($1::integer, $2::boolean)
