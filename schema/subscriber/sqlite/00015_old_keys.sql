-- +goose NO TRANSACTION
-- +goose Up
ALTER TABLE keys RENAME TO old_keys;
