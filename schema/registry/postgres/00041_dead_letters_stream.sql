-- +goose NO TRANSACTION
-- +goose Up
-- When the stream that stream_sequence belongs to was created, nanoseconds since the Unix epoch. 0 is unknown.
ALTER TABLE dead_letters ADD COLUMN IF NOT EXISTS stream_created_at BIGINT NOT NULL DEFAULT 0;
