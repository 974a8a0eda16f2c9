-- +goose NO TRANSACTION
-- +goose Up
-- The apps whose developers may bind services, and their Master Keys.
CREATE TABLE IF NOT EXISTS apps (
    app_id            TEXT   NOT NULL PRIMARY KEY,
    master_public_key BLOB   NOT NULL,
    added_at          BIGINT NOT NULL -- seconds since the Unix epoch, as every time here
) WITHOUT ROWID;
