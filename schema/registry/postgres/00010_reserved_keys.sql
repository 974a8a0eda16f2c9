-- +goose NO TRANSACTION
-- +goose Up
-- Keys that never become a service's key or a Master Key again: the registry's own keys, and
-- Master Keys that were replaced. Rows are only appended.
CREATE TABLE IF NOT EXISTS reserved_keys (
    public_key  BYTEA  NOT NULL,
    app_id      TEXT   NOT NULL, -- whose Master Key it was; '': the registry's own key
    replaced_by BYTEA,           -- NULL for the registry's own
    ended_at    BIGINT NOT NULL, -- 0 for the registry's own
    PRIMARY KEY (public_key, app_id)
);
