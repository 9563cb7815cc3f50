-- +goose Up

-- From here on nobody moves a head of the earlier form: what is moved behind a copy of it would be
-- given out twice. Who holds a head has 30 s to let go of it, and those who come wait as long.
SET LOCAL lock_timeout = '30s';
LOCK TABLE waybill.key_heads IN ACCESS EXCLUSIVE MODE;

-- The keys that were ever seen. Insert only. Its id says where a key's head is: page id / 32,
-- place id % 32.
CREATE TABLE waybill.keys (
    source         text COLLATE "C" NOT NULL,
    type           text COLLATE "C" NOT NULL,
    id             bigint NOT NULL UNIQUE CHECK (id >= 0),
    PRIMARY KEY (source, type)
);

-- The last seqnum given out per key, 32 keys to a row: a flush of many keys moves few rows. The
-- version is part of the index and grows with each flush, and with each sixteenth event of a key that has flushes to itself:
-- a transaction that somebody holds open keeps all old rows, and nobody has to walk over more than a
-- version's to find the newest one.
CREATE TABLE waybill.heads (
    page           bigint NOT NULL,
    version        bigint NOT NULL,
    seqnums        bigint[] NOT NULL CHECK (cardinality(seqnums) = 32),
    PRIMARY KEY (page, version)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);

-- Gives keys that have none their place. One transaction at a time does so, until it ends, so that
-- ids are dense; the statements behind the lock see what the one before has committed. A page is
-- made with its first key and never again: a lost one stays an error. The settings keep every plan a
-- walk down an index, for these are kept, and may be made while the tables are empty.
-- +goose StatementBegin
CREATE FUNCTION waybill.add_keys(sources text[], types text[]) RETURNS void
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    past bigint;
BEGIN
    PERFORM FROM unnest(sources, types) AS n(source, type)
    LEFT JOIN LATERAL (SELECT id FROM waybill.keys WHERE source = n.source AND type = n.type OFFSET 0) AS k ON true
    WHERE k.id IS NULL;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock('waybill.keys'::regclass::oid::bigint);
    past := coalesce((SELECT max(id) FROM waybill.keys), -1) + 1;
    INSERT INTO waybill.keys (source, type, id)
    SELECT n.source, n.type, past - 1 + row_number() OVER (ORDER BY n.source, n.type)
    FROM (SELECT DISTINCT source COLLATE "C" AS source, type COLLATE "C" AS type
          FROM unnest(sources, types) AS k(source, type)) AS n
    LEFT JOIN LATERAL (SELECT id FROM waybill.keys WHERE source = n.source AND type = n.type OFFSET 0) AS k ON true
    WHERE k.id IS NULL;
    INSERT INTO waybill.heads (page, version, seqnums)
    SELECT p, 0, array_fill(0::bigint, ARRAY[32])
    FROM generate_series((past + 31) / 32, (SELECT max(id) / 32 FROM waybill.keys)) AS p;
END
$$;
-- +goose StatementEnd

-- Moves the heads of keys on by their counts and returns them, in the keys' order. The rows are
-- locked in the order of their pages, whatever that of the keys is, so that two transactions can
-- wait for each other but never deadlock. A key without a head is the error WB001.
-- +goose StatementBegin
CREATE FUNCTION waybill.move_heads(sources text[], types text[], counts bigint[]) RETURNS bigint[]
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    moved    bigint[] := array_fill(0::bigint, ARRAY[cardinality(counts)]);
    on_page  bigint;
    places   integer[];
    nth      integer[];
    newest   bigint;
    last     bigint[];
BEGIN
    FOR on_page, places, nth, newest, last IN
        SELECT p.page, p.places, p.nth, h.version, h.seqnums
        FROM (SELECT d.id / 32 AS page, array_agg((d.id % 32 + 1)::integer) AS places, array_agg(k.n::integer) AS nth
              FROM unnest(sources, types) WITH ORDINALITY AS k(source, type, n)
              LEFT JOIN LATERAL (SELECT id FROM waybill.keys WHERE source = k.source AND type = k.type OFFSET 0) AS d ON true
              GROUP BY 1 ORDER BY 1 NULLS FIRST OFFSET 0) AS p
        LEFT JOIN LATERAL (
            SELECT version, seqnums FROM waybill.heads WHERE page = p.page ORDER BY version DESC LIMIT 1 FOR UPDATE) AS h ON true
    LOOP
        IF newest IS NULL THEN
            RAISE EXCEPTION 'a key has no head' USING ERRCODE = 'WB001';
        END IF;
        FOR i IN 1 .. cardinality(places) LOOP
            last[places[i]] := last[places[i]] + counts[nth[i]];
            moved[nth[i]] := last[places[i]];
        END LOOP;
        UPDATE waybill.heads SET version = newest + 1, seqnums = last WHERE page = on_page AND version = newest;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'head page % moved under its lock', on_page;
        END IF;
    END LOOP;
    RETURN moved;
END
$$;
-- +goose StatementEnd

INSERT INTO waybill.keys (source, type, id)
SELECT source, type, row_number() OVER (ORDER BY source, type) - 1 FROM waybill.key_heads;
INSERT INTO waybill.heads (page, version, seqnums)
SELECT p.page, 0, array_agg(coalesce(o.seqnum, 0) ORDER BY p.place)
FROM (SELECT page, place, page * 32 + place AS id
      FROM generate_series(0, (SELECT max(id) / 32 FROM waybill.keys)) AS page, generate_series(0, 31) AS place) AS p
LEFT JOIN waybill.keys k ON k.id = p.id
LEFT JOIN waybill.key_heads o ON o.source = k.source AND o.type = k.type
GROUP BY p.page;
DROP TABLE waybill.key_heads;

-- For those who look: the last seqnum given out per key.
CREATE VIEW waybill.key_heads AS
SELECT k.source, k.type, h.seqnums[k.id % 32 + 1] AS seqnum
FROM waybill.keys k JOIN waybill.heads h ON h.page = k.id / 32
WHERE h.seqnums[k.id % 32 + 1] > 0;
