-- +goose NO TRANSACTION
-- +goose Up
-- The changes whose event and receipt are committed and not yet known to be in their streams. A row lives for milliseconds: who
-- commits it publishes and deletes it. What a crash leaves is claimed by any replica once its lease has ended.
-- The rows of one commit lie side by side, and are deleted as one range. The receipt is in the history.
CREATE TABLE IF NOT EXISTS outbox (
    batch       BIGINT NOT NULL, -- of the commit, at random
    position    BIGINT NOT NULL, -- order of publication: nanoseconds since the Unix epoch at the commit
    service     BIGINT NOT NULL, -- which change in the history
    sequence    BIGINT NOT NULL,
    event       BYTEA,           -- as it will be sent; NULL: an earlier release has published it
    lease_until BIGINT NOT NULL, -- milliseconds since the Unix epoch
    PRIMARY KEY (batch, position)
);
