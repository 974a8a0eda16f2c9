-- +goose NO TRANSACTION
-- +goose Up
-- The events that took effect: an event counts once (docs/protocol.md §7.2). The rows are in the
-- order of their nonces, because ascending timestamps would all go to one node.
CREATE TABLE IF NOT EXISTS applied (
    timestamp BIGINT NOT NULL, -- the event's own, which is signed with its nonce
    nonce     TEXT   NOT NULL,
    PRIMARY KEY (nonce, timestamp)
);
