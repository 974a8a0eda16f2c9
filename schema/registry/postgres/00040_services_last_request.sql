-- +goose NO TRANSACTION
-- +goose Up
-- Where the last change's request stands in the stream of requests, and when the last request by the Master Key was signed: requests
-- by the Master Key take effect in that order. 0 is unknown.
ALTER TABLE services
    ADD COLUMN IF NOT EXISTS stream_created_at BIGINT NOT NULL DEFAULT 0, -- when the stream was created, nanoseconds since the Unix epoch
    ADD COLUMN IF NOT EXISTS stream_sequence   BIGINT NOT NULL DEFAULT 0,
    ADD COLUMN IF NOT EXISTS master_signed_at  BIGINT NOT NULL DEFAULT 0;
