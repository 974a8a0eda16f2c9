-- +goose NO TRANSACTION
-- +goose Up
-- A Master Key never becomes a service's key: the registry looks for every new key here.
CREATE INDEX IF NOT EXISTS apps_master_public_key ON apps (master_public_key);
