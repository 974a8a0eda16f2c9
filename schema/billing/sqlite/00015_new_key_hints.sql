-- +goose NO TRANSACTION
-- +goose Up
-- The hints to the newest keys, as new_service_hints.
CREATE TABLE IF NOT EXISTS new_key_hints (
    hint    BLOB   NOT NULL,
    service BIGINT NOT NULL,
    PRIMARY KEY (hint, service)
) WITHOUT ROWID;
