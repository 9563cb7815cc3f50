-- Takes shards that nobody has, for this session. $1: shards, in the order in which they are tried; $2: the most
SELECT s.shard FROM unnest($1::smallint[]) AS s(shard)
WHERE pg_try_advisory_lock('waybill.outbox'::regclass::oid::integer, s.shard) LIMIT $2::integer
