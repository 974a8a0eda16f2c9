-- +goose NO TRANSACTION
-- +goose Up
-- What is known of each key: the join of everything that events said of it (package keyring). The
-- keys of one service lie together. A key belongs to one service for ever: the registry sees to
-- that, and this table does not rely on it.
-- A key changes once, when it gets its end, and its page has room for that on PostgreSQL.
CREATE TABLE IF NOT EXISTS keys (
    service    BIGINT NOT NULL, -- its id
    public_key BYTEA  NOT NULL,
    position   BIGINT NOT NULL, -- of the event that brought it; below 0: that replaced it
    from_time  BIGINT NOT NULL, -- seconds since the Unix epoch, as every time here; 0: unknown
    end_time   BIGINT NOT NULL, -- the earliest end that an event named; 2^63-1: none did
    PRIMARY KEY (service, public_key)
) WITH (fillfactor = 50);
