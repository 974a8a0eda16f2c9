-- +goose NO TRANSACTION
-- +goose Up
-- What is known of each key: the join of all that any event said of it (package keyring). The keys of one service
-- lie together. A key names one service for ever; the registry sees to that, and this table does not rely on it.
CREATE TABLE IF NOT EXISTS keys (
    service    BIGINT NOT NULL, -- its id
    public_key BYTEA  NOT NULL,
    position   BIGINT NOT NULL, -- the order of the event that brought it; negative: of the one that replaced it
    from_time  BIGINT NOT NULL, -- seconds since the Unix epoch, as every time here; 0: not known
    end_time   BIGINT NOT NULL, -- the earliest end that an event named; 2^63-1: none did
    PRIMARY KEY (service, public_key)
);
