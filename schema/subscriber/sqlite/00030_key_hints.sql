-- +goose NO TRANSACTION
-- +goose Up
-- Whose key is this? The first bytes of each key name the few services that may have it. An index of whole keys would be three times
-- as large, and keys are random: each new one changes a page of its own.
CREATE TABLE IF NOT EXISTS key_hints (
    hint    BLOB   NOT NULL, -- the first 6 bytes of a key
    service BIGINT NOT NULL, -- its id
    PRIMARY KEY (hint, service)
) WITHOUT ROWID;
