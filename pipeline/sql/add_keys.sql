-- Gives the keys that have none a place among the heads. $1, $2: source, type
SELECT waybill.add_keys($1::text[], $2::text[])
