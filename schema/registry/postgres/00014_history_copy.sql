-- +goose NO TRANSACTION
-- +goose Up
-- A change of a service that is not in services, which only a damaged database has, has no id and fails this: nothing is
-- dropped unseen.
INSERT INTO history (service, sequence, event, old_public_key, public_key, grace_period_expiry, committed_at, event_nonce, request_nonce,
    request_digest, receipt_nonce, receipt)
    SELECT s.id, h.sequence, event, old_public_key, h.public_key, grace_period_expiry, committed_at, event_nonce, request_nonce,
    request_digest, receipt_nonce, receipt
    FROM old_history h LEFT JOIN new_services s ON s.target = h.target WHERE true ON CONFLICT DO NOTHING;
