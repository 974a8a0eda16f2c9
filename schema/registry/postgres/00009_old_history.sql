-- +goose NO TRANSACTION
-- +goose Up
ALTER TABLE IF EXISTS history RENAME TO old_history;
