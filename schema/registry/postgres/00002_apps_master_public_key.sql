-- +goose NO TRANSACTION
-- +goose Up
-- A Master Key is never a service's key: every new key is looked for here.
CREATE INDEX IF NOT EXISTS apps_master_public_key ON apps (master_public_key);
