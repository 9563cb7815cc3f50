    -- A further part of dedupe_read.sql: the rows of transactions that were in progress then.
    UNION ALL
    SELECT fingerprints FROM waybill.dedupe_log
    WHERE xid = ANY (ARRAY(SELECT pg_snapshot_xip($1::text::pg_snapshot)))
