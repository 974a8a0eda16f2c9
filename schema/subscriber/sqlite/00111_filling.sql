-- +goose NO TRANSACTION
-- +goose Up
-- How far a gap in a service's history is filled from the registry's account, which comes in parts: up to the sequence `kept`, it is
-- there and does not change any more. A gap that is closed has no row.
CREATE TABLE IF NOT EXISTS filling (
    service BIGINT NOT NULL PRIMARY KEY, -- its id
    kept    BIGINT NOT NULL
);
