-- +goose NO TRANSACTION
-- +goose Up
-- The hints of the newest services, as new_key_hints.
CREATE TABLE IF NOT EXISTS new_service_hints (
    hint    BLOB   NOT NULL,
    service BIGINT NOT NULL,
    PRIMARY KEY (hint, service)
) WITHOUT ROWID;
