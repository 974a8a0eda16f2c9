-- +goose NO TRANSACTION
-- +goose Up
-- Up to which sequence history is known to have every event of a stream. A database restored from a
-- backup has an older row, so the search for what it lacks starts there.
CREATE TABLE IF NOT EXISTS stream_positions (
    stream     TEXT   NOT NULL PRIMARY KEY,
    created_at BIGINT NOT NULL, -- of the stream, in nanoseconds: a new one counts from 1
    position   BIGINT NOT NULL, -- history has every event up to this sequence
    writes     BIGINT NOT NULL  -- counts the writes to this row: less, and a backup was restored
);
