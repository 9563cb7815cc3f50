-- What waits, per sink and lane: one scan of the small table. $1: the grace period in
-- microseconds; overdue is what was queued before now less grace, or, by a clock that jumped
-- back since, after now and grace. What was requeued and
-- never queued yet (queued_at 'epoch') is in no stream, and says nothing of where to look.
SELECT s.sink, b.lane, count(*), sum(b.events), sum(b.bytes),
       min(b.queued_at) FILTER (WHERE b.queued_at > 'epoch'), min(b.accepted_at), min(b.expires_at),
       count(*) FILTER (WHERE b.queued_at < now() - $1::bigint * interval '1 microsecond'
                           OR b.queued_at > now() + $1::bigint * interval '1 microsecond')
FROM waybill.batches b, unnest(b.waiting_for) AS s(sink)
GROUP BY s.sink, b.lane
