-- Takes rows out of the outbox, in the transaction that stores their events. The error WB002 says that
-- another has taken some of them, or that this is another server, or another run of it, than they were read from.
-- $1, $2: xid, id; $3: when that server started
SELECT waybill.take_outbox($1::bigint[], $2::bigint[], $3::timestamptz)
