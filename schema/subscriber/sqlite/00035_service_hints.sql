-- +goose NO TRANSACTION
-- +goose Up
-- Which service has this name? As in key_hints, a hint names the few that may have it.
CREATE TABLE IF NOT EXISTS service_hints (
    hint    BLOB   NOT NULL, -- omi_hint(target)
    service BIGINT NOT NULL, -- its id
    PRIMARY KEY (hint, service)
) WITHOUT ROWID;
