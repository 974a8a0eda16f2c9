-- +goose NO TRANSACTION
-- +goose Up
-- Which service has this name? A hint, some bytes of the name's hash, leads to the few services
-- that may have it. An index of whole names would be three times as large. omi_hint is a function
-- that internal/sqldb gives to its connections.
CREATE TABLE IF NOT EXISTS service_hints (
    hint    BLOB   NOT NULL, -- omi_hint(target)
    service BIGINT NOT NULL, -- its id
    PRIMARY KEY (hint, service)
) WITHOUT ROWID;
