-- +goose NO TRANSACTION
-- +goose Up
DROP TABLE IF EXISTS key_hints;
