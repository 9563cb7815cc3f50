-- The slots of the log that hold rows, are neither the current nor the previous one, and have
-- no row younger than the window, and the time in windows as of which that is so. (After a change of
-- the window the slots mean other times.)
WITH clock AS (
    SELECT greatest(dedupe_window, interval '1 second') AS len,
           floor(extract(epoch FROM now()) / greatest(extract(epoch FROM dedupe_window), 1))::bigint AS turn
    FROM waybill.pipeline
)
SELECT s.slot::smallint, c.turn
FROM clock c, generate_series(0, 2) AS s (slot)
WHERE s.slot = (c.turn + 1) % 3
  AND EXISTS (SELECT 1 FROM waybill.dedupe_log l WHERE l.slot = s.slot)
  AND NOT EXISTS (SELECT 1 FROM waybill.dedupe_log l WHERE l.slot = s.slot AND l.at > now() - c.len)
