-- What waits, by sink, among the first batches: enough to say what is in the way.
-- $1: batches at most.
SELECT coalesce(s.sink, 'nobody'), count(*)
FROM (SELECT waiting_for FROM waybill.batches ORDER BY batch LIMIT $1::integer) AS b
LEFT JOIN LATERAL unnest(b.waiting_for) AS s(sink) ON true
GROUP BY s.sink
ORDER BY s.sink
