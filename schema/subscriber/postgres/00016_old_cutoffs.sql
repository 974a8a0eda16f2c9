-- +goose NO TRANSACTION
-- +goose Up
ALTER TABLE IF EXISTS cutoffs RENAME TO old_cutoffs;
