-- +goose NO TRANSACTION
-- +goose Up
-- The hints to the newest services, which are few and lie together. From time to time, some move to
-- service_hints, neighbours at once.
CREATE TABLE IF NOT EXISTS new_service_hints (
    hint    BLOB   NOT NULL,
    service BIGINT NOT NULL,
    PRIMARY KEY (hint, service)
) WITHOUT ROWID;
