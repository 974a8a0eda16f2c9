-- +goose NO TRANSACTION
-- +goose Up
ALTER TABLE history RENAME TO old_history;
