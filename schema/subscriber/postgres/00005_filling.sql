-- +goose NO TRANSACTION
-- +goose Up
-- How far a gap in a service's history is filled from the registry's account, which comes in parts:
-- everything up to the sequence `kept` is there and no longer changes. A closed gap has no row.
CREATE TABLE IF NOT EXISTS filling (
    service BIGINT NOT NULL PRIMARY KEY, -- its id
    kept    BIGINT NOT NULL
);
