-- +goose Up

-- Dead letters are paged through by failed_at and then by their key, and the key must be in the
-- index: one transaction may move tens of thousands, which then all have one failed_at.
CREATE INDEX dead_letters_by_failure ON waybill.dead_letters (failed_at, position, token, sink);
DROP INDEX waybill.dead_letters_failed_at;

-- A requeued event that fails again keeps the batch it went into: a receipt of that batch may
-- still come, and says that the sink took it after all. requeued_at alone says that it is on its
-- way.
ALTER TABLE waybill.dead_letters DROP CONSTRAINT dead_letters_check;
ALTER TABLE waybill.dead_letters DROP CONSTRAINT dead_letters_check1;
ALTER TABLE waybill.dead_letters
    ADD CONSTRAINT dead_letters_on_its_way CHECK (requeued_at IS NULL OR requeued_batch IS NOT NULL),
    ADD CONSTRAINT dead_letters_batch CHECK ((requeued_batch IS NULL) = (requeued_token IS NULL));

-- The lane that a requeued event was in before: where a log per lane may have it. It differs from
-- the batch's own only when the pipeline has that lane no more.
ALTER TABLE waybill.batches ADD COLUMN origin_lane smallint;

-- How often it was put back into the queue.
ALTER TABLE waybill.dead_letters ADD COLUMN requeues integer NOT NULL DEFAULT 0;
