-- The newest survey counts; one of the future is of a clock that was set back since. $1..$3: events, bytes, when the
-- survey began.
UPDATE waybill.backlog SET events = $1, bytes = $2, surveyed_at = $3 WHERE surveyed_at < $3 OR surveyed_at > now()
