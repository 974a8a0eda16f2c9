-- +goose NO TRANSACTION
-- +goose Up
-- The present state of each service that was ever bound: the last row of its history, and what a change replaces.
-- A change is a compare-and-swap on sequence, which moves with every change and never back.
CREATE TABLE IF NOT EXISTS new_services (
    id               INTEGER PRIMARY KEY, -- what history knows it by
    target           TEXT   NOT NULL UNIQUE, -- <app_id>.<service_id>
    status           TEXT   NOT NULL,        -- active, revoked
    sequence         BIGINT NOT NULL,
    public_key       BLOB ,                  -- the current key; NULL when revoked
    changed_at       BIGINT NOT NULL,        -- time of the last change, so since when the key is current
    bound_at         BIGINT NOT NULL,
    recent_rotations TEXT   NOT NULL,        -- when JetStream stored those of the last minute, for the rate limit
    service_type     TEXT   NOT NULL,
    endpoint_url     TEXT   NOT NULL,
    provider_receipt TEXT   NOT NULL         -- of a revocation, as it came
);
