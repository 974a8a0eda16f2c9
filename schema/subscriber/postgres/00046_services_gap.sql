-- +goose NO TRANSACTION
-- +goose Up
-- What services_with_gap computed for itself. An index that names columns which every event changes makes PostgreSQL write each
-- new version of a row into all indexes; gap hardly ever changes.
ALTER TABLE services ADD COLUMN IF NOT EXISTS gap BOOLEAN GENERATED ALWAYS AS (max_sequence > filled + sequenced) STORED;
