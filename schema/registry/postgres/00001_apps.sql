-- +goose NO TRANSACTION
-- +goose Up
-- The apps whose developers may bind services, and their Master Keys. All times here are seconds
-- since the Unix epoch, except where a column says otherwise.
CREATE TABLE IF NOT EXISTS apps (
    app_id            TEXT   NOT NULL PRIMARY KEY,
    master_public_key BYTEA  NOT NULL,
    added_at          BIGINT NOT NULL
);
