-- +goose NO TRANSACTION
-- +goose Up
-- Up to which sequence of a stream this database has settled messages: the highest of the parts.
-- The transaction that applies a batch moves it. If a durable has acknowledged more than that, it
-- did so for another database.
CREATE TABLE IF NOT EXISTS stream_positions (
    stream     TEXT   NOT NULL,
    part       BIGINT NOT NULL, -- each process picks one, so they don't wait for each other
    created_at BIGINT NOT NULL, -- of the stream, in nanoseconds: a new one counts from 1
    position   BIGINT NOT NULL,
    PRIMARY KEY (stream, part)
) WITHOUT ROWID;
