-- +goose Up

CREATE SCHEMA IF NOT EXISTS waybill;

-- What was decided when the pipeline was created. One row.
CREATE TABLE waybill.pipeline (
    one            boolean     PRIMARY KEY DEFAULT true CHECK (one),
    lanes          integer     NOT NULL CHECK (lanes BETWEEN 1 AND 256),
    -- What is queued is out of order by less than half of this.
    grace          interval    NOT NULL CHECK (grace >= interval '1 second'),
    created_at     timestamptz NOT NULL DEFAULT now()
);

-- The sinks that every event must reach. The authority: JetStream's consumers follow it.
CREATE TABLE waybill.sinks (
    name           text        PRIMARY KEY CHECK (name ~ '^[a-z][a-z0-9_]{0,31}$'),
    created_at     timestamptz NOT NULL DEFAULT now()
);

-- The last seqnum given out per key. COLLATE "C": every ingest locks these rows in one
-- byte order, whatever the database's locale is.
CREATE TABLE waybill.key_heads (
    source         text COLLATE "C" NOT NULL,
    type           text COLLATE "C" NOT NULL,
    seqnum         bigint NOT NULL CHECK (seqnum >= 1),
    PRIMARY KEY (source, type)
) WITH (fillfactor = 70);

CREATE SEQUENCE waybill.batch_numbers AS bigint MAXVALUE 2251799813685247 CACHE 1;

-- The small table that everything periodic works on. Columns that change (queued_at,
-- attempts, waiting_for) are in no index, and pages keep room, so that updates stay HOT.
CREATE TABLE waybill.batches (
    batch          bigint      PRIMARY KEY,
    token          bigint      NOT NULL,
    lane           smallint    NOT NULL CHECK (lane >= 0),
    events         smallint    NOT NULL CHECK (events BETWEEN 1 AND 4096),
    bytes          bigint      NOT NULL CHECK (bytes >= 0),
    accepted_at    timestamptz NOT NULL DEFAULT now(),
    -- Start of the transaction that led to the newest message: what the watermark is
    -- compared with.
    queued_at      timestamptz NOT NULL DEFAULT now(),
    -- NULL: never.
    expires_at     timestamptz,
    attempts       integer     NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    -- The sinks without a receipt. A batch that waits for nobody is deleted.
    waiting_for    text[]      NOT NULL,
    -- Of a requeued dead letter: which event of which earlier batch it is.
    origin_position bigint,
    origin_token    bigint,
    CHECK ((origin_position IS NULL) = (origin_token IS NULL)),
    CHECK (origin_position IS NULL OR events = 1)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);

ALTER SEQUENCE waybill.batch_numbers OWNED BY waybill.batches.batch;

-- Insert and delete only. position = batch << 12 | index within the batch.
CREATE TABLE waybill.events (
    position       bigint PRIMARY KEY,
    source         text   NOT NULL,
    type           text   NOT NULL,
    event_id       text   NOT NULL,
    seqnum         bigint NOT NULL CHECK (seqnum >= 1),
    -- Encoding of io.cloudevents.v1.CloudEvent, without seqnum.
    event          bytea  NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);

-- Events travel as they are stored: compressing them again costs more than it saves
-- for the short time they stay.
ALTER TABLE waybill.events ALTER COLUMN event SET STORAGE EXTERNAL;

-- What a sink refused for good or did not take in time. A row leaves by a receipt of
-- its requeued event, or past the dead letters' own TTL.
CREATE TABLE waybill.dead_letters (
    position       bigint      NOT NULL,
    -- Of the batch: a restore may set the numbers back, and a new batch's event must not
    -- pass for an old dead letter.
    token          bigint      NOT NULL,
    sink           text        NOT NULL,
    code           text        NOT NULL,
    reason         text        NOT NULL,
    failed_at      timestamptz NOT NULL DEFAULT now(),
    accepted_at    timestamptz NOT NULL,
    -- Set when it goes back into the queue, with the batch it went into.
    requeued_at    timestamptz,
    requeued_batch bigint,
    requeued_token bigint,
    -- Set when a receipt of the sink arrives after all.
    delivered_late_at timestamptz,
    lane           smallint    NOT NULL,
    source         text        NOT NULL,
    type           text        NOT NULL,
    event_id       text        NOT NULL,
    seqnum         bigint      NOT NULL,
    event          bytea       NOT NULL,
    PRIMARY KEY (position, token, sink),
    CHECK ((requeued_batch IS NULL) = (requeued_at IS NULL)),
    CHECK ((requeued_token IS NULL) = (requeued_at IS NULL))
);

-- The two ways it is read: what failed lately, and by the receipt of a requeued batch.
CREATE INDEX dead_letters_failed_at ON waybill.dead_letters (failed_at);
CREATE INDEX dead_letters_requeued ON waybill.dead_letters (requeued_batch) WHERE requeued_batch IS NOT NULL;
