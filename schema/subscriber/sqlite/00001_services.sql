-- +goose NO TRANSACTION
-- +goose Up
-- One row for each service of which any event was applied. Its history has a gap if
-- max_sequence > filled + sequenced. Ids follow the order in which services are first seen, so
-- services that are active together lie together, and new ones are appended. In the order of their
-- names, each service would be on a page of its own.
CREATE TABLE IF NOT EXISTS services (
    id           INTEGER PRIMARY KEY, -- what the other tables call the service
    target       TEXT   NOT NULL UNIQUE, -- <app_id>.<service_id>
    head         BIGINT NOT NULL, -- the highest order of any event
    max_sequence BIGINT NOT NULL, -- the highest sequence of any event; 0: the registry sends none
    filled       BIGINT NOT NULL, -- up to here, the registry's history stands in for events
    sequenced    BIGINT NOT NULL  -- how many events with a sequence beyond filled were applied
);
