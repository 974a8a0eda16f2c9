-- +goose NO TRANSACTION
-- +goose Up
-- The hints of the newest keys, which are few and lie together. From time to time, some are moved to key_hints, neighbours at once.
CREATE TABLE IF NOT EXISTS new_key_hints (
    hint    BLOB   NOT NULL,
    service BIGINT NOT NULL,
    PRIMARY KEY (hint, service)
) WITHOUT ROWID;
