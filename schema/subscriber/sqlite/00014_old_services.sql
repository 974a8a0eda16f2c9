-- +goose NO TRANSACTION
-- +goose Up
-- The tables of before are put aside before they are copied: an older release that still runs can apply nothing from here on, so
-- nothing that it applies is left behind.
ALTER TABLE services RENAME TO old_services;
