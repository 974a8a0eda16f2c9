-- +goose NO TRANSACTION
-- +goose Up
-- As the one before: nobody asks an Auth Provider.
DROP INDEX IF EXISTS keys_by_public_key;
