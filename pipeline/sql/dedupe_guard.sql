-- The last part of dedupe_read.sql for a flush in one round trip: an error instead of rows when
-- the server is not the known one, when a row may hold an event of the flush, or when it would
-- take long to say. It looks for the bytes wherever they are in a row, so it may say so wrongly.
-- $3: when the known server started
-- $4: the fingerprints of the flush, 12 bytes each
-- $5: the most bytes to look through, of rows times events
WHERE CAST(CASE
    WHEN pg_postmaster_start_time() <> $3::timestamptz THEN false
    WHEN (SELECT sum(octet_length(fingerprints)) FROM heard) * cardinality($4::bytea[]) > $5::bigint THEN false
    ELSE NOT EXISTS (SELECT FROM heard, unnest($4::bytea[]) f WHERE position(f IN fingerprints) > 0)
END AS waybill.may_commit)
