-- Marks rows of which no event can be made. $1, $2, $3: xid, id, reason
UPDATE waybill.outbox o SET refused_at = now(), reason = r.reason
FROM unnest($1::bigint[], $2::bigint[], $3::text[]) AS r(xid, id, reason)
CROSS JOIN LATERAL (SELECT ctid FROM waybill.outbox WHERE xid = r.xid AND id = r.id AND refused_at IS NULL OFFSET 0) AS f
WHERE o.ctid = f.ctid
