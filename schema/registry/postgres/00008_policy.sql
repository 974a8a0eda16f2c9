-- +goose NO TRANSACTION
-- +goose Up
-- The settings that all registries on this database share, as the first of them recorded them.
CREATE TABLE IF NOT EXISTS policy (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);
