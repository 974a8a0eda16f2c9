-- +goose NO TRANSACTION
-- +goose Up
-- A key of a service that is not in services, which only a damaged database has, has no id and fails this: nothing is dropped
-- unseen.
INSERT INTO keys (service, public_key, position, from_time, end_time)
    SELECT s.id, k.public_key, k.position, k.from_time, k.end_time
    FROM old_keys k LEFT JOIN new_services s ON s.target = k.target WHERE true ON CONFLICT DO NOTHING;
