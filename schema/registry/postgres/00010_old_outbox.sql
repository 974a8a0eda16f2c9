-- +goose NO TRANSACTION
-- +goose Up
ALTER TABLE IF EXISTS outbox RENAME TO old_outbox;
