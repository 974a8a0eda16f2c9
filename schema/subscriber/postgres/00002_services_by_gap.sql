-- +goose NO TRANSACTION
-- +goose Up
-- The few services with a gap, among very many without one.
CREATE INDEX IF NOT EXISTS services_by_gap ON services (target) WHERE gap;
