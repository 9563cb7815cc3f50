-- Emits events, as part of the transaction of their caller. $1..$3: source, type, id; $4: the sizes of their
-- encodings, which follow one another in $5
SELECT waybill.emit_encoded($1::text[], $2::text[], $3::text[], $4::integer[], $5::bytea)
