-- +goose NO TRANSACTION
-- +goose Up
-- Keys that are never a service's key nor a Master Key again: the registry's own, and Master Keys that were replaced. It is only
-- ever appended to.
CREATE TABLE IF NOT EXISTS reserved_keys (
    public_key  BYTEA  NOT NULL,
    app_id      TEXT   NOT NULL, -- whose Master Key it was; '': it is the registry's own
    replaced_by BYTEA,           -- NULL for the registry's own
    ended_at    BIGINT NOT NULL, -- 0 for the registry's own
    PRIMARY KEY (public_key, app_id)
);
