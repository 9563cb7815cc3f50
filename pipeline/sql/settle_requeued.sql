-- A requeued event that arrived: its dead letter has served. $1..$3: batch, token, sink.
DELETE FROM waybill.dead_letters d
USING unnest($1::bigint[], $2::bigint[], $3::text[]) AS r(batch, token, sink)
WHERE d.requeued_batch = ANY ($1::bigint[]) AND d.requeued_batch = r.batch AND d.requeued_token = r.token AND d.sink = r.sink
