-- +goose Up

-- A receipt of one sink takes most batches of a page in one transaction. Its old rows cannot be pruned before
-- it ends, so that a page needs room for more of them to keep updates out of the index
-- (docs/performance.md, "The tables under churn").
ALTER TABLE waybill.batches SET (fillfactor = 70);
