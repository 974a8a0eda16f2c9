-- +goose NO TRANSACTION
-- +goose Up
-- Requests that could not be decided, because the code panics on them or fails while it decides
-- others. Each waits for an operator. A retry decides it as of its first arrival.
CREATE TABLE IF NOT EXISTS dead_letters (
    id                TEXT   NOT NULL PRIMARY KEY, -- a hash of the message and its place
    stream_created_at BIGINT NOT NULL DEFAULT 0,   -- in nanoseconds; 0: unknown
    stream_sequence   BIGINT NOT NULL,
    stored_at         BIGINT NOT NULL,             -- by JetStream: the clock for its timestamp
    reason            TEXT   NOT NULL,             -- panic or error
    detail            TEXT   NOT NULL,
    tries             BIGINT NOT NULL,
    set_aside_at      BIGINT NOT NULL,
    retry_at          BIGINT,                      -- in milliseconds; NULL: no retry is asked for
    subject           TEXT   NOT NULL,
    payload           BLOB   NOT NULL
);
