-- The newest survey counts. $1..$3: events, bytes, when the survey began.
UPDATE waybill.backlog SET events = $1, bytes = $2, surveyed_at = $3 WHERE surveyed_at < $3
