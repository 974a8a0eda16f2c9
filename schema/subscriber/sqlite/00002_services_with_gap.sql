-- +goose NO TRANSACTION
-- +goose Up
-- The few services with a gap, among very many without one.
CREATE INDEX IF NOT EXISTS services_with_gap ON services (target)
    WHERE max_sequence > filled + sequenced;
