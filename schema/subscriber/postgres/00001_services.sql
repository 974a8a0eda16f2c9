-- +goose NO TRANSACTION
-- +goose Up
-- One row for each service of which any event was applied. Its history has a gap if
-- max_sequence > filled + sequenced. The process that inserts a row chooses its id: the ids of one
-- batch are consecutive, and those of two batches are far apart, because CockroachDB would send all
-- ascending ids to one node.
-- If an index names a column that every event changes, PostgreSQL writes each new version of a row
-- into all indexes. So services_by_gap names the column gap, which seldom changes, and pages have
-- room for the next versions of their rows. CockroachDB ignores fillfactor.
CREATE TABLE IF NOT EXISTS services (
    id           BIGINT NOT NULL PRIMARY KEY, -- what the other tables call the service
    target       TEXT   NOT NULL UNIQUE, -- <app_id>.<service_id>
    head         BIGINT NOT NULL, -- the highest order of any event
    max_sequence BIGINT NOT NULL, -- the highest sequence of any event; 0: the registry sends none
    filled       BIGINT NOT NULL, -- up to here, the registry's history stands in for events
    sequenced    BIGINT NOT NULL, -- how many events with a sequence beyond filled were applied
    gap          BOOLEAN GENERATED ALWAYS AS (max_sequence > filled + sequenced) STORED
) WITH (fillfactor = 70);
