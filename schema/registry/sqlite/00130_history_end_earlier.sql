-- +goose NO TRANSACTION
-- +goose Up
-- 1: a rotation that ended every earlier key of its service, as a reset does (end_earlier in the protocol).
ALTER TABLE history ADD COLUMN end_earlier BIGINT NOT NULL DEFAULT 0;
