-- +goose NO TRANSACTION
-- +goose Up
-- Up to where the history is known to have every event of a stream. A database that was restored from a backup has an
-- older row too, so what it lacks is found from there on.
CREATE TABLE IF NOT EXISTS stream_positions (
    stream     TEXT   NOT NULL PRIMARY KEY,
    created_at BIGINT NOT NULL, -- when the stream was made, nanoseconds since the Unix epoch: a new one counts from 1
    position   BIGINT NOT NULL, -- every event up to this sequence of the stream is in the history
    writes     BIGINT NOT NULL  -- counts what is written here: it never runs backwards, but in a database that was restored
) WITHOUT ROWID;
