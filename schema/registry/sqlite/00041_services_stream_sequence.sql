-- +goose NO TRANSACTION
-- +goose Up
ALTER TABLE services ADD COLUMN stream_sequence BIGINT NOT NULL DEFAULT 0;
