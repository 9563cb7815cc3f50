-- $1: microseconds after which a survey is old.
SELECT events, bytes, surveyed_at, surveyed_at < now() - $1::bigint * interval '1 microsecond' FROM waybill.backlog
