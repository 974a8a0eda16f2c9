-- +goose NO TRANSACTION
-- +goose Up
-- The nonces of the events that took effect: what makes an event count once (docs/protocol.md §7.2).
CREATE TABLE IF NOT EXISTS applied (
    nonce TEXT NOT NULL PRIMARY KEY
);
