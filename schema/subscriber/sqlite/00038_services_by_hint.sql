-- +goose NO TRANSACTION
-- +goose Up
-- As services, without an index of whole names, which are long and in a random order. An older release that still runs has
-- to find a service by its name as it writes it, and gets an error.
CREATE TABLE IF NOT EXISTS new_services (
    id           INTEGER PRIMARY KEY, -- what keys and cutoffs know it by
    target       TEXT   NOT NULL, -- <app_id>.<service_id>
    head         BIGINT NOT NULL, -- the highest order of any event
    max_sequence BIGINT NOT NULL, -- the highest sequence of any event; 0: the registry sends none
    filled       BIGINT NOT NULL, -- up to this sequence, the registry's history stands in for events not seen
    sequenced    BIGINT NOT NULL  -- how many events with a sequence beyond filled were applied
);
