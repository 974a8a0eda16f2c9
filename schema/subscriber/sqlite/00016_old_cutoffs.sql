-- +goose NO TRANSACTION
-- +goose Up
ALTER TABLE cutoffs RENAME TO old_cutoffs;
