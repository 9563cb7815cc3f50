-- Takes rows out of the outbox, in the transaction that stores their events. The error WB002 says that
-- another has taken some of them. $1, $2: xid, id
SELECT waybill.take_outbox($1::bigint[], $2::bigint[])
