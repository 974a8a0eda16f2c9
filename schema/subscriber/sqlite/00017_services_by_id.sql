-- +goose NO TRANSACTION
-- +goose Up
-- One row for each service of which any event was applied. It has a gap in its history, where
-- max_sequence > filled + sequenced. The ids are given in the order in which services are first seen: those that are active
-- together lie together, and new ones are appended. In the order of their names, each would be on a page of its own.
CREATE TABLE IF NOT EXISTS new_services (
    id           INTEGER PRIMARY KEY, -- what keys and cutoffs know it by
    target       TEXT   NOT NULL UNIQUE, -- <app_id>.<service_id>
    head         BIGINT NOT NULL, -- the highest order of any event
    max_sequence BIGINT NOT NULL, -- the highest sequence of any event; 0: the registry sends none
    filled       BIGINT NOT NULL, -- up to this sequence, the registry's history stands in for events not seen
    sequenced    BIGINT NOT NULL  -- how many events with a sequence beyond filled were applied
);
