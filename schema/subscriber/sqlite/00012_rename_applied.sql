-- +goose NO TRANSACTION
-- +goose Up
ALTER TABLE applied_by_time RENAME TO applied;
