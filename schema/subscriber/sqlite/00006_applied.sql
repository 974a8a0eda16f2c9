-- +goose NO TRANSACTION
-- +goose Up
-- The events that took effect: an event counts once (docs/protocol.md §7.2). The rows are in the
-- order in which events are made, so a batch is appended. Nonces are random: in their order, each
-- row would change a page of its own.
CREATE TABLE IF NOT EXISTS applied (
    timestamp BIGINT NOT NULL, -- the event's own, which is signed with its nonce
    nonce     TEXT   NOT NULL,
    PRIMARY KEY (timestamp, nonce)
) WITHOUT ROWID;
