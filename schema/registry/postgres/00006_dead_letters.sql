-- +goose NO TRANSACTION
-- +goose Up
-- Requests that could not be decided: the code panics on them, or fails while it decides others. Each waits here for an
-- operator, and is decided again, as one that came when it did, once a retry is asked for.
CREATE TABLE IF NOT EXISTS dead_letters (
    id              TEXT   NOT NULL PRIMARY KEY, -- a hash of the message and its place: set aside twice, it is one row
    stream_sequence BIGINT NOT NULL,
    stored_at       BIGINT NOT NULL,             -- by JetStream: its timestamp is judged against that
    reason          TEXT   NOT NULL,             -- panic or error
    detail          TEXT   NOT NULL,
    tries           BIGINT NOT NULL,
    set_aside_at    BIGINT NOT NULL,
    retry_at        BIGINT,                      -- from when a registry may try again, in milliseconds; NULL: nobody asks
    subject         TEXT   NOT NULL,
    payload         BYTEA  NOT NULL
);
