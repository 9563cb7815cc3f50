-- What waits, per sink and lane: one scan of the small table. $1: the grace period in
-- microseconds; overdue is what was queued before now less grace, or, by a clock that jumped
-- back since, after now and grace: that is counted by itself too, and so is what was requeued and
-- never queued yet (queued_at 'epoch'), which is in no stream and says nothing of where to look.
-- Near its TTL is what has less than a fifth of it left.
-- The last two count each batch once over all the sinks it waits for.
SELECT s.sink, b.lane, count(*), sum(b.events), sum(b.bytes),
       min(b.queued_at) FILTER (WHERE b.queued_at > 'epoch'), min(b.accepted_at), min(b.expires_at),
       count(*) FILTER (WHERE b.queued_at < now() - $1::bigint * interval '1 microsecond'
                           OR b.queued_at > now() + $1::bigint * interval '1 microsecond'),
       count(*) FILTER (WHERE b.queued_at <= 'epoch' OR b.queued_at > now() + $1::bigint * interval '1 microsecond'),
       coalesce(sum(b.events) FILTER (WHERE b.expires_at < now() + (b.expires_at - b.accepted_at) / 5), 0),
       sum(b.events::float8 / cardinality(b.waiting_for)), sum(b.bytes::float8 / cardinality(b.waiting_for))
FROM waybill.batches b, unnest(b.waiting_for) AS s(sink)
GROUP BY s.sink, b.lane
