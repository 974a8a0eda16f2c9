-- +goose NO TRANSACTION
-- +goose Up
-- What the table applied is made of anew: its rows in the order in which events are made, so that a batch is appended. In the
-- order of their nonces, which are random, each row would change a page of its own.
CREATE TABLE IF NOT EXISTS applied_by_time (
    nonce     TEXT   NOT NULL,
    timestamp BIGINT NOT NULL, -- the event's own, which is signed with its nonce
    PRIMARY KEY (timestamp, nonce)
) WITHOUT ROWID;
