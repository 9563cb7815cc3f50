-- A restore may leave the sequence behind the rows that survived. Never set it back.
SELECT setval('waybill.batch_numbers', greatest(
    (SELECT last_value FROM waybill.batch_numbers),
    (SELECT coalesce(max(batch), 0) FROM waybill.batches),
    (SELECT coalesce(max(position) >> 12, 0) FROM waybill.events)))
