-- +goose NO TRANSACTION
-- +goose Up
-- What waits to be published goes on waiting: each change as a commit of its own.
INSERT INTO outbox (batch, position, service, sequence, event, lease_until)
    SELECT row_number() OVER (ORDER BY h.service, h.sequence), COALESCE(e.position, r.position), h.service, h.sequence,
    e.payload, COALESCE(e.lease_until, r.lease_until)
    FROM history h LEFT JOIN old_outbox e ON e.nonce = h.event_nonce LEFT JOIN old_outbox r ON r.nonce = h.receipt_nonce
    WHERE e.nonce IS NOT NULL OR r.nonce IS NOT NULL ON CONFLICT DO NOTHING;
