-- +goose NO TRANSACTION
-- +goose Up
-- Up to which sequence of a stream this database has settled messages: the highest of the parts. Whoever applies a batch
-- moves it in the same transaction. A durable that has acknowledged more has done so for another database.
CREATE TABLE IF NOT EXISTS stream_positions (
    stream     TEXT   NOT NULL,
    part       BIGINT NOT NULL, -- each process picks one, so that several on one database don't wait for each other
    created_at BIGINT NOT NULL, -- when the stream was made, nanoseconds since the Unix epoch: a new one counts from 1
    position   BIGINT NOT NULL,
    PRIMARY KEY (stream, part)
) WITHOUT ROWID;
