-- +goose NO TRANSACTION
-- +goose Up
-- The present state of each service that was ever bound: the last row of its history, and what the
-- next change needs. A change is a compare-and-swap on sequence, which grows with every change.
CREATE TABLE IF NOT EXISTS services (
    id               INTEGER PRIMARY KEY,    -- what the other tables call the service
    target           TEXT   NOT NULL UNIQUE, -- <app_id>.<service_id>
    status           TEXT   NOT NULL,        -- active, revoked
    sequence         BIGINT NOT NULL,
    public_key       BLOB,                   -- the current key; NULL when revoked
    changed_at       BIGINT NOT NULL,        -- of the last change: the key is current since then
    bound_at         BIGINT NOT NULL,
    recent_rotations TEXT   NOT NULL,        -- when JetStream stored those of the last minute
    service_type     TEXT   NOT NULL,
    endpoint_url     TEXT   NOT NULL,
    provider_receipt TEXT   NOT NULL,        -- of a revocation, as received
    -- Requests by the Master Key take effect in the order of master_signed_at, the time at which
    -- the last of them was signed. The other two say where the last change's request stands in the
    -- stream of requests, and when that stream was created (nanoseconds). 0: unknown.
    stream_created_at BIGINT NOT NULL DEFAULT 0,
    stream_sequence   BIGINT NOT NULL DEFAULT 0,
    master_signed_at  BIGINT NOT NULL DEFAULT 0
);
