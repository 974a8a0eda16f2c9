-- +goose NO TRANSACTION
-- +goose Up
-- Nothing is lost: each service has its row in the new table, and gets its id there.
INSERT INTO new_services (target, status, sequence, public_key, changed_at, bound_at, recent_rotations, service_type, endpoint_url,
    provider_receipt)
    SELECT target, status, sequence, public_key, changed_at, bound_at, recent_rotations, service_type, endpoint_url,
    provider_receipt
    FROM old_services WHERE true ON CONFLICT DO NOTHING;
