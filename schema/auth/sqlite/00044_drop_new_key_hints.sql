-- +goose NO TRANSACTION
-- +goose Up
DROP TABLE IF EXISTS new_key_hints;
