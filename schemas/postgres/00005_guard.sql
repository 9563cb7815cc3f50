-- +goose Up

-- Whether a flush may commit what it was read for, as Postgres itself has to say: a flush in
-- one round trip cannot ask its ingest. A value that is not true is an error, whose constraint
-- tells it from every other one, and an error ends the transaction.
CREATE DOMAIN waybill.may_commit AS boolean CONSTRAINT may_commit CHECK (VALUE IS TRUE);
