-- No batch waits, under a lock that lets nobody append (ACCESS EXCLUSIVE on batches): the number
-- of lanes may change. $1: lanes.
UPDATE waybill.pipeline SET lanes = $1::integer
