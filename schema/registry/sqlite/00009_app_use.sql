-- +goose NO TRANSACTION
-- +goose Up
-- What each app has used of its allowance: how many services it ever bound, and how many changes by
-- its Master Key fell into the last minute and the last day that had any. The transaction that
-- commits a change counts it.
CREATE TABLE IF NOT EXISTS app_use (
    app_id         TEXT   NOT NULL PRIMARY KEY,
    services       BIGINT NOT NULL,
    minute         BIGINT NOT NULL, -- since the Unix epoch, as JetStream stored the requests
    minute_changes BIGINT NOT NULL,
    day            BIGINT NOT NULL,
    day_changes    BIGINT NOT NULL
);
