-- +goose NO TRANSACTION
-- +goose Up
-- One row for each committed change: the event, the request that asked for it, and the receipt that
-- answered it. Rows are only appended. The unique keys are invariants: no sequence twice, no key
-- twice or for two services, and no nonce of a service for two requests. Every change writes into
-- each of these indexes, so their keys are short.
CREATE TABLE IF NOT EXISTS history (
    service             BIGINT NOT NULL, -- its id
    sequence            BIGINT NOT NULL,
    event               TEXT   NOT NULL,
    old_public_key      BYTEA,           -- NULL in a binding
    public_key          BYTEA,           -- the key that the event brought; NULL in a revocation
    grace_period_expiry BIGINT NOT NULL, -- of the old key
    -- 1: a rotation that ended every earlier key
    end_earlier         BIGINT NOT NULL DEFAULT 0,
    committed_at        BIGINT NOT NULL,
    event_nonce         TEXT   NOT NULL,
    request_nonce       TEXT   NOT NULL,
    request_digest      BYTEA  NOT NULL, -- SHA-256 of the request's data in canonical form
    receipt_nonce       TEXT   NOT NULL,
    receipt             BYTEA  NOT NULL, -- as sent, to be sent again
    PRIMARY KEY (service, sequence),
    UNIQUE (public_key),
    UNIQUE (service, request_nonce)
);
