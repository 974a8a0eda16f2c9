-- +goose NO TRANSACTION
-- +goose Up
DROP INDEX IF EXISTS keys_by_public_key;
