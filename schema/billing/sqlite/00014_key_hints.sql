-- +goose NO TRANSACTION
-- +goose Up
-- Whose key is this? As in service_hints, a hint leads to the few services that may have it. The
-- bytes are not the key's own, which its owner chooses.
CREATE TABLE IF NOT EXISTS key_hints (
    hint    BLOB   NOT NULL, -- omi_hint(public_key)
    service BIGINT NOT NULL, -- its id
    PRIMARY KEY (hint, service)
) WITHOUT ROWID;
