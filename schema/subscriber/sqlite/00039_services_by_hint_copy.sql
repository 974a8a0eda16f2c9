-- +goose NO TRANSACTION
-- +goose Up
INSERT INTO new_services (id, target, head, max_sequence, filled, sequenced)
    SELECT id, target, head, max_sequence, filled, sequenced FROM services WHERE true ORDER BY id ON CONFLICT DO NOTHING;
