-- Every event that waits, batch by batch, as one snapshot has them; of a batch whose rows are gone
-- one row without an event. The bounds are on the primary key of events.
SELECT b.batch, b.events, b.accepted_at, b.waiting_for, e.source, e.type, e.seqnum
FROM waybill.batches b
LEFT JOIN LATERAL (
    SELECT source, type, seqnum FROM waybill.events
    WHERE position >= b.batch << 12 AND position < (b.batch + 1) << 12
) AS e ON true
ORDER BY b.batch
