-- +goose NO TRANSACTION
-- +goose Up
-- Whose key is this?
CREATE INDEX IF NOT EXISTS keys_by_public_key ON keys (public_key);
