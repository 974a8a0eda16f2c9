-- +goose NO TRANSACTION
-- +goose Up
ALTER TABLE new_services RENAME TO services;
