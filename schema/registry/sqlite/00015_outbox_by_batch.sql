-- +goose NO TRANSACTION
-- +goose Up
-- Signed messages that are committed and not yet known to be in their stream. A row lives for milliseconds: who
-- commits it publishes and deletes it. What a crash leaves is claimed by any replica once its lease has ended.
-- The messages of one commit lie side by side, and are deleted as one range.
CREATE TABLE IF NOT EXISTS outbox (
    batch       BIGINT NOT NULL, -- of the commit, at random
    position    BIGINT NOT NULL, -- order of publication: nanoseconds since the Unix epoch at the commit
    nonce       TEXT   NOT NULL, -- the message's own, which is its Nats-Msg-Id
    subject     TEXT   NOT NULL,
    payload     BLOB   NOT NULL,
    lease_until BIGINT NOT NULL, -- milliseconds since the Unix epoch
    PRIMARY KEY (batch, position)
) WITHOUT ROWID;
