-- +goose NO TRANSACTION
-- +goose Up
-- What waits to be published goes on waiting: each message as a batch of its own.
INSERT INTO outbox (batch, position, nonce, subject, payload, lease_until)
    SELECT row_number() OVER (ORDER BY position, nonce), position, nonce, subject, payload, lease_until
    FROM old_outbox WHERE true ON CONFLICT DO NOTHING;
