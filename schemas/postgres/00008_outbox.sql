-- +goose Up

-- Ids of rows, which order those of one transaction. A session has 32 of them at a time.
CREATE SEQUENCE waybill.outbox_ids AS bigint CACHE 32;

-- Events that are committed and have no seqnum yet: they get it when a taker makes a batch of them, in
-- the transaction that deletes their rows. Insert and delete only, but for refusals.
CREATE TABLE waybill.outbox (
    -- Of the transaction that emitted, as a number: what a taker has not seen yet is found by it.
    xid            bigint      NOT NULL DEFAULT pg_current_xact_id()::text::bigint,
    id             bigint      NOT NULL DEFAULT nextval('waybill.outbox_ids'),
    emitted_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    source         text COLLATE "C" NOT NULL,
    type           text COLLATE "C" NOT NULL,
    event_id       text        NOT NULL,
    -- A key has one shard, and a shard has one taker.
    shard          smallint    NOT NULL GENERATED ALWAYS AS ((hashtextextended(source || E'\n' || type, 0) & 15)::smallint) STORED,
    -- Encoding of io.cloudevents.v1.CloudEvent, or NULL, and then the event is made of what follows.
    event          bytea,
    -- NULL: the event has no data. is_text: it is text in UTF-8.
    data           bytea,
    is_text        boolean,
    -- An object of strings, booleans and integers.
    attributes     jsonb,
    -- Set when no event can be made of it. It stays until somebody decides.
    refused_at     timestamptz,
    reason         text,
    PRIMARY KEY (xid, id),
    CONSTRAINT outbox_event CHECK (event IS NULL OR (data IS NULL AND is_text IS NULL AND attributes IS NULL)),
    CONSTRAINT outbox_refused CHECK ((refused_at IS NULL) = (reason IS NULL)),
    -- What is larger than any event is refused where it is inserted, whoever inserts it: a taker would have to read it to
    -- say that it is no event, and has memory for some rows of this size alone.
    CONSTRAINT outbox_size CHECK (
        octet_length(source) <= 1024 AND octet_length(type) <= 512 AND octet_length(event_id) <= 1024
        AND octet_length(event) <= 1048576 AND octet_length(data) <= 1048576 AND pg_column_size(attributes) <= 2097152)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);

ALTER SEQUENCE waybill.outbox_ids OWNED BY waybill.outbox.id;

-- They are there for some milliseconds: compressing them costs more than it saves. And what a row takes in a
-- taker's memory is its size here.
ALTER TABLE waybill.outbox ALTER COLUMN event SET STORAGE EXTERNAL, ALTER COLUMN data SET STORAGE EXTERNAL,
    ALTER COLUMN attributes SET STORAGE EXTERNAL;

-- The few that wait for somebody.
CREATE INDEX outbox_refused ON waybill.outbox (id) WHERE refused_at IS NOT NULL;

-- Which shards have a taker that sleeps, as bits 0 to 15 of last_value, and until when that may be believed,
-- in milliseconds of the epoch, as the bits above. A sequence, because everybody sees its newest value at
-- once, whatever their snapshots, without a lock and without old versions of rows.
CREATE SEQUENCE waybill.outbox_sleepers AS bigint MINVALUE 0 START 0;

-- A taker says that it sleeps, or no longer does. mine: its shards, as bits. What was said longer ago than is
-- to be believed is forgotten, so that nobody notifies takers that are gone. It does not wait for whoever keeps its
-- lock: everybody may call it, and leave a transaction open. Without it, callers do not wake a taker, which looks by
-- itself, or wake one that is awake.
-- +goose StatementBegin
CREATE FUNCTION waybill.outbox_sleep(mine integer, asleep boolean) RETURNS void
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

-- Wakes the takers of shards, as bits, that sleep. NOTIFY takes a lock of the whole cluster at commit, so it
-- is left out while they are awake and find what is new by themselves. Postgres refuses to prepare a transaction
-- (two-phase commit) that has notified: such a one sets waybill.notify to off before it emits. It is one expression,
-- without settings of its own, so that it becomes part of the statement that calls it.
GRANT SELECT ON SEQUENCE waybill.outbox_sleepers TO PUBLIC;
CREATE FUNCTION waybill.outbox_wake(shards integer) RETURNS void LANGUAGE sql
RETURN CASE WHEN coalesce(pg_sequence_last_value('waybill.outbox_sleepers'), 0) & shards <> 0
        AND coalesce(pg_sequence_last_value('waybill.outbox_sleepers'), 0) >> 16 >= extract(epoch FROM clock_timestamp()) * 1000
        AND coalesce(current_setting('waybill.notify', true), '') <> 'off'
    THEN pg_notify('waybill_outbox', '') END;

-- Emits events that are encoded: one array each for sources, types, ids and the sizes of the encodings, which
-- follow one another in events. Whoever calls it has checked them; what is no event is refused by the taker.
-- +goose StatementBegin
CREATE FUNCTION waybill.emit_encoded(sources text[], types text[], ids text[], sizes integer[], events bytea) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    shards integer;
BEGIN
    IF cardinality(ids) = 1 THEN
        INSERT INTO waybill.outbox (source, type, event_id, event) VALUES (sources[1], types[1], ids[1], events)
        RETURNING 1 << shard::integer INTO shards;
        PERFORM waybill.outbox_wake(shards);
        RETURN;
    END IF;
    WITH emitted AS (
        INSERT INTO waybill.outbox (source, type, event_id, event)
        SELECT e.source, e.type, e.id, substring(events FROM e.past - e.size + 1 FOR e.size)
        FROM (SELECT u.*, (sum(u.size) OVER (ORDER BY u.n))::integer AS past
              FROM unnest(sources, types, ids, sizes) WITH ORDINALITY AS u(source, type, id, size, n)) AS e
        ORDER BY e.n
        RETURNING shard
    )
    SELECT bit_or(1 << shard::integer) INTO shards FROM emitted;
    PERFORM waybill.outbox_wake(shards);
END
$$;
-- +goose StatementEnd

-- Takes rows out of the outbox, in the transaction that stores their events. The error WB002 says that another
-- has taken some, or that they were read from another server, or another run of it, than this is: after a failover that
-- has lost the newest transactions, numbers of rows are given out again. Then that transaction must not be committed.
-- +goose StatementBegin
CREATE FUNCTION waybill.take_outbox(xids bigint[], ids bigint[], server timestamptz) RETURNS void
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    taken bigint;
BEGIN
    IF server <> pg_postmaster_start_time() THEN
        RAISE EXCEPTION 'rows of the outbox were read from another server, or before this one started' USING ERRCODE = 'WB002';
    END IF;
    -- By their places, which are looked up one by one, whatever size the table is thought to have.
    DELETE FROM waybill.outbox WHERE ctid = ANY (ARRAY(
        SELECT o.ctid FROM unnest(xids, ids) AS t(xid, id)
        CROSS JOIN LATERAL (SELECT ctid FROM waybill.outbox WHERE xid = t.xid AND id = t.id OFFSET 0) AS o));
    GET DIAGNOSTICS taken = ROW_COUNT;
    IF taken <> cardinality(ids) THEN
        RAISE EXCEPTION 'others have taken % of % rows of the outbox', cardinality(ids) - taken, cardinality(ids) USING ERRCODE = 'WB002';
    END IF;
END
$$;
-- +goose StatementEnd

-- Puts a refused row back, as if it were emitted now. False: there is no such row.
-- +goose StatementBegin
CREATE FUNCTION waybill.outbox_retry(row_id bigint) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    shards integer;
BEGIN
    WITH gone AS (
        DELETE FROM waybill.outbox WHERE id = row_id AND refused_at IS NOT NULL RETURNING *
    ), back AS (
        INSERT INTO waybill.outbox (source, type, event_id, event, data, is_text, attributes)
        SELECT source, type, event_id, event, data, is_text, attributes FROM gone
        RETURNING shard
    )
    SELECT 1 << shard::integer INTO shards FROM back;
    IF shards IS NULL THEN
        RETURN false;
    END IF;
    PERFORM waybill.outbox_wake(shards);
    RETURN true;
END
$$;
-- +goose StatementEnd

-- Whether ref is a URI reference as of RFC 3986, in which characters beyond ASCII may stand for themselves. It
-- accepts nothing that ingest does not. Its regular expression has backslashes, which a session may read as escapes.
-- +goose StatementBegin
CREATE FUNCTION waybill.is_uri_reference(ref text) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
DECLARE
    -- A character of a path, the same without the colon, and of a query or fragment.
    p CONSTANT text := '(?:[A-Za-z0-9._~!$&''()*+,;=:@-]|%[0-9A-Fa-f]{2}|[^\u0001-\u007f])';
    n CONSTANT text := '(?:[A-Za-z0-9._~!$&''()*+,;=@-]|%[0-9A-Fa-f]{2}|[^\u0001-\u007f])';
    q CONSTANT text := '(?:[A-Za-z0-9._~!$&''()*+,;=:@/?-]|%[0-9A-Fa-f]{2}|[^\u0001-\u007f])';
    -- User, host and port.
    a CONSTANT text := '//(?:(?:[A-Za-z0-9._~!$&''()*+,;=:-]|%[0-9A-Fa-f]{2})*@)?'
        '(?:(?:[A-Za-z0-9._~!$&''()*+,;=-]|[^\u0001-\u007f])*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?';
    literal text;
BEGIN
    IF ref ~ '^[A-Za-z0-9/._~-]+$' THEN
        RETURN true;
    END IF;
    IF ref IS NULL OR ref !~ ('^(?:[A-Za-z][A-Za-z0-9+.-]*:(?:' || a || '(?:/' || p || '*)*|/?(?:' || p || '+(?:/' || p || '*)*)?)'
            || '|' || a || '(?:/' || p || '*)*|/(?:' || p || '+(?:/' || p || '*)*)?|' || n || '+(?:/' || p || '*)*|)'
            || '(?:\?' || q || '*)?(?:#' || q || '*)?$') THEN
        RETURN false;
    END IF;
    literal := substring(ref FROM '\[([^]]*)\]');
    IF literal IS NULL THEN
        RETURN true;
    END IF;
    BEGIN
        RETURN family(literal::inet) = 6;
    EXCEPTION WHEN OTHERS THEN
        RETURN false;
    END;
END
$$;
-- +goose StatementEnd

-- Whether text is a media type with parameters as of RFC 2046. It accepts nothing that ingest does not.
-- +goose StatementBegin
CREATE FUNCTION waybill.is_media_type(media text) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on AS $$
DECLARE
    token CONSTANT text := '[!#$&+.^_`|~0-9A-Za-z-]+';
BEGIN
    IF media IN ('application/json', 'application/protobuf') THEN
        RETURN true;
    END IF;
    IF media IS NULL OR media !~ ('^' || token || '/' || token || '(?:[ ]*;[ ]*' || token || '=(?:' || token || '|"[ !#-Z^-~]*"))*$') THEN
        RETURN false;
    END IF;
    -- A parameter that is there twice.
    RETURN (SELECT count(*) = count(DISTINCT lower(m[1])) FROM regexp_matches(media, ';[ ]*([^=;" ]+)=', 'g') AS m);
END
$$;
-- +goose StatementEnd

-- Checks one event and puts it into the outbox. waybill.emit, below, is what is called.
-- +goose StatementBegin
CREATE FUNCTION waybill.emit_row(source text, type text, data bytea, is_text boolean, id text, subject text, "time" timestamptz,
    datacontenttype text, dataschema text, extensions jsonb) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    most CONSTANT bigint := 1048576;
    attributes jsonb;
    name       text;
    value      jsonb;
    kind       text;
    wrong      text;
    bytes      bigint;
    in_shard   integer;
BEGIN
    id := coalesce(id, gen_random_uuid()::text);
    extensions := coalesce(extensions, '{}');
    wrong := CASE
        WHEN id = '' THEN 'id: is empty; give one, or NULL for a random UUID'
        WHEN octet_length(id) > 1024 THEN format('id: is %s bytes; the limit is 1024', octet_length(id))
        WHEN coalesce(source, '') = '' THEN 'source: is required and must not be empty'
        WHEN octet_length(source) > 1024 THEN format('source: is %s bytes; the limit is 1024', octet_length(source))
        WHEN NOT waybill.is_uri_reference(source) THEN
            format('source: %L is not a URI reference as of RFC 3986; write other characters as bytes in hexadecimal, a blank as %%20', source)
        WHEN coalesce(type, '') = '' THEN 'type: is required and must not be empty'
        WHEN octet_length(type) > 512 THEN format('type: is %s bytes; the limit is 512', octet_length(type))
        WHEN subject = '' THEN 'subject: is empty; give one, or NULL for none'
        WHEN NOT ("time" >= '0001-01-01 00:00:00+00' AND "time" < '10000-01-01 00:00:00+00') THEN
            format('time: is %s; give one of the years 1 to 9999, or NULL for none', "time")
        WHEN datacontenttype IS NOT NULL AND NOT waybill.is_media_type(datacontenttype) THEN
            format('datacontenttype: %L is not a media type as of RFC 2046, such as application/json', datacontenttype)
        WHEN dataschema IS NOT NULL AND (dataschema = '' OR NOT waybill.is_uri_reference(dataschema)) THEN
            format('dataschema: %L is not a URI; give one, or NULL for none', dataschema)
        WHEN jsonb_typeof(extensions) <> 'object' THEN
            format('extensions: is a JSON %s; give an object of attributes, such as {"tenant": "a"}', jsonb_typeof(extensions))
    END;
    IF wrong IS NULL THEN
        FOR name, value IN SELECT e.key, e.value FROM jsonb_each(extensions) AS e LOOP
            kind := jsonb_typeof(value);
            wrong := CASE
                WHEN name !~ '^[a-z0-9]+$' THEN
                    format('extensions: %L; attribute names consist of lower-case letters a-z and digits only', name)
                WHEN name IN ('id', 'source', 'type', 'specversion', 'data', 'subject', 'time', 'datacontenttype', 'dataschema') THEN
                    format('extensions: %L is not an extension; it is an argument of its own, or given', name)
                WHEN kind NOT IN ('string', 'boolean', 'number') THEN
                    format('extensions: %L is a JSON %s; give it a string, a boolean or an integer, or leave it out', name, kind)
                WHEN kind = 'number' AND NOT (value::text ~ '^-?[0-9]+$' AND value::numeric BETWEEN -2147483648 AND 2147483647) THEN
                    format('extensions: %L is %s; give it an integer of 32 bits, or a string', name, value)
            END;
            EXIT WHEN wrong IS NOT NULL;
        END LOOP;
    END IF;
    IF wrong IS NULL THEN
        attributes := extensions || jsonb_strip_nulls(jsonb_build_object(
            'subject', subject, 'datacontenttype', datacontenttype, 'dataschema', dataschema,
            'time', to_char("time" AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')));
        -- No less than what the encoding will be: tags and lengths take some bytes for each field and attribute.
        SELECT 64 + octet_length(source) + octet_length(type) + octet_length(id) + coalesce(octet_length(data), 0)
                + coalesce(octet_length(dataschema), 0) + coalesce(sum(octet_length(e.key) + octet_length(e.value) + 32), 0)
            INTO bytes FROM jsonb_each_text(attributes) AS e;
        IF bytes > most THEN
            wrong := format('data: the event is up to %s bytes encoded; the limit is %s; store the data elsewhere and emit where it is', bytes, most);
        END IF;
    END IF;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION 'waybill.emit: %', wrong USING ERRCODE = '22023';
    END IF;
    INSERT INTO waybill.outbox (source, type, event_id, data, is_text, attributes)
    VALUES (source, type, id, data, CASE WHEN data IS NOT NULL THEN is_text END, attributes)
    RETURNING 1 << shard::integer INTO in_shard;
    PERFORM waybill.outbox_wake(in_shard);
    RETURN id;
END
$$;
-- +goose StatementEnd

-- Emits an event, as part of the transaction under way, and returns its id. data is JSON, text or bytes; a
-- literal without a type is text. Arguments that no ingest would accept are an error of SQLSTATE 22023.
-- docs/outbox.md describes them.
CREATE FUNCTION waybill.emit(source text, type text, data jsonb, id text DEFAULT NULL, subject text DEFAULT NULL,
    "time" timestamptz DEFAULT NULL, datacontenttype text DEFAULT 'application/json', dataschema text DEFAULT NULL, extensions jsonb DEFAULT NULL)
RETURNS text LANGUAGE sql
RETURN waybill.emit_row(source, type, convert_to(data::text, 'UTF8'), false, id, subject, "time", datacontenttype, dataschema, extensions);

CREATE FUNCTION waybill.emit(source text, type text, data text, id text DEFAULT NULL, subject text DEFAULT NULL,
    "time" timestamptz DEFAULT NULL, datacontenttype text DEFAULT NULL, dataschema text DEFAULT NULL, extensions jsonb DEFAULT NULL)
RETURNS text LANGUAGE sql
RETURN waybill.emit_row(source, type, convert_to(data, 'UTF8'), true, id, subject, "time", datacontenttype, dataschema, extensions);

CREATE FUNCTION waybill.emit(source text, type text, data bytea, id text DEFAULT NULL, subject text DEFAULT NULL,
    "time" timestamptz DEFAULT NULL, datacontenttype text DEFAULT NULL, dataschema text DEFAULT NULL, extensions jsonb DEFAULT NULL)
RETURNS text LANGUAGE sql
RETURN waybill.emit_row(source, type, data, false, id, subject, "time", datacontenttype, dataschema, extensions);
