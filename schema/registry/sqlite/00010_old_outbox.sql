-- +goose NO TRANSACTION
-- +goose Up
ALTER TABLE outbox RENAME TO old_outbox;
