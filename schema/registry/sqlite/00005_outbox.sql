-- +goose NO TRANSACTION
-- +goose Up
-- Signed messages that are committed and not yet known to be in their stream. A row lives for milliseconds: who
-- commits it publishes and deletes it. What a crash leaves is claimed by any replica once its lease has ended.
CREATE TABLE IF NOT EXISTS outbox (
    nonce       TEXT   NOT NULL PRIMARY KEY, -- the message's own, which is its Nats-Msg-Id
    subject     TEXT   NOT NULL,
    payload     BLOB   NOT NULL,
    position    BIGINT NOT NULL,             -- order of publication: nanoseconds since the Unix epoch at the commit
    lease_until BIGINT NOT NULL              -- milliseconds since the Unix epoch
) WITHOUT ROWID;
