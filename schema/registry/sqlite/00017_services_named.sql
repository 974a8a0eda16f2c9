-- +goose NO TRANSACTION
-- +goose Up
-- Only now, when it has everything: an older release that still runs is asked for services, and would say of each that it was
-- never bound. So it gets an error.
ALTER TABLE new_services RENAME TO services;
