-- The time in windows.
SELECT floor(extract(epoch FROM clock_timestamp()) / greatest(extract(epoch FROM dedupe_window), 1))::bigint FROM waybill.pipeline
