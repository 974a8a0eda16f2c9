-- +goose NO TRANSACTION
-- +goose Up
-- The newest messages that were not to be applied, for an operator to look at.
CREATE TABLE IF NOT EXISTS set_aside (
    stream_sequence BIGINT NOT NULL PRIMARY KEY,
    subject         TEXT   NOT NULL,
    reason          TEXT   NOT NULL,
    detail          TEXT   NOT NULL,
    payload         BYTEA  NOT NULL,
    set_aside_at    BIGINT NOT NULL
);
