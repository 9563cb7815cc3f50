-- +goose Up

-- How long a (source, id) is remembered; 0: not at all. Every ingest reads it at start.
ALTER TABLE waybill.pipeline ADD COLUMN dedupe_window interval NOT NULL DEFAULT interval '10 minutes'
    CHECK (dedupe_window = interval '0' OR dedupe_window BETWEEN interval '1 second' AND interval '1 day');

-- What was accepted within the window: one row per flush, with the fingerprints of its events,
-- 12 bytes each. Insert only. slot is the time in windows, modulo 3; the partition that is
-- neither the current nor the previous one is truncated as a whole.
CREATE TABLE waybill.dedupe_log (
    slot           smallint    NOT NULL,
    -- Of the flush's transaction: what another ingest has not seen yet is found by it. Not
    -- unique: a restored database may give a number out again.
    xid            xid8        NOT NULL DEFAULT pg_current_xact_id(),
    at             timestamptz NOT NULL DEFAULT now(),
    events         integer     NOT NULL,
    fingerprints   bytea       NOT NULL CHECK (octet_length(fingerprints) = 12 * events)
) PARTITION BY LIST (slot);

CREATE INDEX dedupe_log_xid ON waybill.dedupe_log (xid);

-- Hashes do not compress.
ALTER TABLE waybill.dedupe_log ALTER COLUMN fingerprints SET STORAGE EXTERNAL;

-- Never vacuumed: nothing is updated or deleted, and a vacuum would hold up the truncate.
CREATE TABLE waybill.dedupe_log_0 PARTITION OF waybill.dedupe_log FOR VALUES IN (0)
    WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false);
CREATE TABLE waybill.dedupe_log_1 PARTITION OF waybill.dedupe_log FOR VALUES IN (1)
    WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false);
CREATE TABLE waybill.dedupe_log_2 PARTITION OF waybill.dedupe_log FOR VALUES IN (2)
    WITH (autovacuum_enabled = false, toast.autovacuum_enabled = false);
