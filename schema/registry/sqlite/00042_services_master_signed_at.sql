-- +goose NO TRANSACTION
-- +goose Up
ALTER TABLE services ADD COLUMN master_signed_at BIGINT NOT NULL DEFAULT 0;
