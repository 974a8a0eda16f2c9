-- +goose NO TRANSACTION
-- +goose Up
-- Nobody asks an Auth Provider whose key this is.
DROP TRIGGER IF EXISTS keys_hinted;
