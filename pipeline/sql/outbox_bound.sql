-- Bounds the statements of this session. $1: milliseconds; a bound that is lower stays
SELECT set_config('statement_timeout', $1::bigint::text, false) FROM pg_settings
WHERE name = 'statement_timeout' AND setting::bigint NOT BETWEEN 1 AND $1::bigint
