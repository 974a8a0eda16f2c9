-- +goose NO TRANSACTION
-- +goose Up
-- Nothing is lost: each service has its row in the new table, and gets its id there.
INSERT INTO new_services (id, target, head, max_sequence, filled, sequenced)
    SELECT row_number() OVER (ORDER BY target), target, head, max_sequence, filled, sequenced FROM old_services WHERE true
    ON CONFLICT DO NOTHING;
