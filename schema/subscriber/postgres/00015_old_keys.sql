-- +goose NO TRANSACTION
-- +goose Up
ALTER TABLE IF EXISTS keys RENAME TO old_keys;
