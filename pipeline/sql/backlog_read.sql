-- $1: microseconds after which a survey is old. So is one that is as far in the future, by a clock that was set back since.
SELECT events, bytes, surveyed_at, surveyed_at NOT BETWEEN now() - $1::bigint * interval '1 microsecond' AND now() + $1::bigint * interval '1 microsecond'
FROM waybill.backlog
