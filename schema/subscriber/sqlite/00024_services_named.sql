-- +goose NO TRANSACTION
-- +goose Up
-- Only now, when it has everything: an older release that still runs is asked about services, and would say of each that it has
-- never seen it. So it gets an error.
ALTER TABLE new_services RENAME TO services;
