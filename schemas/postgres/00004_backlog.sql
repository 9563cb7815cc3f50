-- +goose Up

-- What waits in batches, as one survey found it. One row, which the janitors write and every
-- ingest reads each second: it takes no events beyond its limit of these.
CREATE TABLE waybill.backlog (
    one            boolean     PRIMARY KEY DEFAULT true CHECK (one),
    events         bigint      NOT NULL CHECK (events >= 0),
    bytes          bigint      NOT NULL CHECK (bytes >= 0),
    -- The beginning of the survey: what was accepted later is not in it.
    surveyed_at    timestamptz NOT NULL
) WITH (fillfactor = 50);

INSERT INTO waybill.backlog (events, bytes, surveyed_at) VALUES (0, 0, 'epoch');
