-- +goose NO TRANSACTION
-- +goose Up
-- The committed changes whose event and receipt may not be in their streams yet. A row lives for
-- milliseconds: the process that commits it publishes both and deletes it. Any replica claims what
-- a crash leaves, once its lease has ended. The rows of one commit are neighbours and are deleted
-- as one range. The receipt is in history.
CREATE TABLE IF NOT EXISTS outbox (
    batch       BIGINT NOT NULL, -- of the commit, at random
    position    BIGINT NOT NULL, -- order of publication: time of the commit in nanoseconds
    service     BIGINT NOT NULL, -- which change in history
    sequence    BIGINT NOT NULL,
    event       BLOB,            -- as it will be sent; NULL: it is published
    lease_until BIGINT NOT NULL, -- milliseconds since the Unix epoch
    PRIMARY KEY (batch, position)
) WITHOUT ROWID;
