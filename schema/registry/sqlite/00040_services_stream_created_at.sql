-- +goose NO TRANSACTION
-- +goose Up
-- The next three are where the last change's request stands in the stream of requests, and when the last request by the Master Key
-- was signed: requests by the Master Key take effect in that order. 0 is unknown. This one is when the stream was created, in
-- nanoseconds since the Unix epoch.
ALTER TABLE services ADD COLUMN stream_created_at BIGINT NOT NULL DEFAULT 0;
