-- +goose NO TRANSACTION
-- +goose Up
-- Nobody asks an Auth Provider whose key this is, and to keep the answer costs it a third of its work.
DROP INDEX IF EXISTS keys_public_key;
