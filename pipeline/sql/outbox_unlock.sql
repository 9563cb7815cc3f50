-- Gives shards back that this session has. $1: shards
SELECT count(*) FILTER (WHERE pg_advisory_unlock('waybill.outbox'::regclass::oid::integer, s.shard)) FROM unnest($1::smallint[]) AS s(shard)
