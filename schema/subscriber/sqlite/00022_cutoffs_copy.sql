-- +goose NO TRANSACTION
-- +goose Up
INSERT INTO cutoffs (service, position, cut_time)
    SELECT s.id, c.position, c.cut_time
    FROM old_cutoffs c LEFT JOIN new_services s ON s.target = c.target WHERE true ON CONFLICT DO NOTHING;
