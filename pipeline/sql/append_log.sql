-- The fingerprints of a flush, as a further part of append.sql.
-- $9: fingerprints, 12 bytes each ($16 behind the parameters of append_events.sql)
, logged AS (
    INSERT INTO waybill.dedupe_log (slot, events, fingerprints)
    SELECT (floor(extract(epoch FROM now()) / greatest(extract(epoch FROM p.dedupe_window), 1))::bigint % 3)::smallint,
           octet_length(l.fingerprints) / 12, l.fingerprints
    FROM waybill.pipeline p, (SELECT $9::bytea AS fingerprints) l
)
