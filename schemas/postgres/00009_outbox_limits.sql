-- +goose Up

-- What is larger than any event is refused where it is inserted, whoever inserts it: a taker would have to read it to
-- say that it is no event, and has memory for some rows of this size alone. Those that are there stay.
ALTER TABLE waybill.outbox ADD CONSTRAINT outbox_size CHECK (
    octet_length(source) <= 1024 AND octet_length(type) <= 512 AND octet_length(event_id) <= 1024
    AND octet_length(event) <= 1048576 AND octet_length(data) <= 1048576 AND pg_column_size(attributes) <= 2097152
) NOT VALID;

-- As it was, but that it does not wait for whoever keeps its lock: everybody may call it, and leave a transaction
-- open, and what it says is a hint. Without it, callers do not wake a taker, which looks by itself, or wake one
-- that is awake.
-- +goose StatementBegin
CREATE OR REPLACE FUNCTION waybill.outbox_sleep(mine integer, asleep boolean) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '100ms' AS $$
DECLARE
    believed CONSTANT bigint := 3000;
    clock    bigint := extract(epoch FROM clock_timestamp()) * 1000;
    said     bigint;
    until    bigint;
    shards   bigint;
BEGIN
    BEGIN
        PERFORM pg_advisory_xact_lock('waybill.outbox_sleepers'::regclass::oid::bigint);
    EXCEPTION WHEN lock_not_available THEN
        RETURN;
    END;
    SELECT last_value INTO said FROM waybill.outbox_sleepers;
    until := said >> 16;
    -- One that lies too far ahead is of a clock that was set back.
    shards := CASE WHEN until BETWEEN clock AND clock + believed THEN said & 65535 ELSE 0 END & ~mine;
    IF asleep THEN
        until := clock + believed;
        shards := shards | mine;
    END IF;
    PERFORM setval('waybill.outbox_sleepers', (until << 16) | shards);
END
$$;
-- +goose StatementEnd

-- As the one without a server, but that it takes nothing (WB002) from another server, or another run of it, than the rows were
-- read from: after a failover that has lost the newest transactions, numbers of rows are given out again.
-- +goose StatementBegin
CREATE FUNCTION waybill.take_outbox(xids bigint[], ids bigint[], server timestamptz) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF server <> pg_postmaster_start_time() THEN
        RAISE EXCEPTION 'rows of the outbox were read from another server, or before this one started' USING ERRCODE = 'WB002';
    END IF;
    PERFORM waybill.take_outbox(xids, ids);
END
$$;
-- +goose StatementEnd

-- Their regular expressions have backslashes, and a session may read those in literals as escapes.
ALTER FUNCTION waybill.is_uri_reference(text) SET standard_conforming_strings = on;
ALTER FUNCTION waybill.is_media_type(text) SET standard_conforming_strings = on;
