-- +goose NO TRANSACTION
-- +goose Up
-- Whose key is this? A hint, some bytes of the key's hash, names the few services that may have it. An index of whole keys would be
-- three times as large, and keys are random: each new one changes a page of its own. Not the key's first bytes: its owner chooses
-- those. omi_hint is a function that internal/sqldb gives to its connections.
CREATE TABLE IF NOT EXISTS key_hints (
    hint    BLOB   NOT NULL, -- omi_hint(public_key)
    service BIGINT NOT NULL, -- its id
    PRIMARY KEY (hint, service)
) WITHOUT ROWID;
