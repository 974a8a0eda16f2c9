-- +goose NO TRANSACTION
-- +goose Up
INSERT INTO service_hints (hint, service)
    SELECT omi_hint(target), id FROM services WHERE true ORDER BY 1, 2 ON CONFLICT DO NOTHING;
