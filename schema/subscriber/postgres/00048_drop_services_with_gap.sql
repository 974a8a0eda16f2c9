-- +goose NO TRANSACTION
-- +goose Up
-- services_by_gap has taken its place. A release of before finds the same services without it, by reading all of them.
DROP INDEX IF EXISTS services_with_gap;
