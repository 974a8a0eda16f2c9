-- +goose NO TRANSACTION
-- +goose Up
-- Master resets and revocations: every key from before `position` ends at `cut_time` at the latest.
CREATE TABLE IF NOT EXISTS cutoffs (
    service  BIGINT NOT NULL, -- its id
    position BIGINT NOT NULL,
    cut_time BIGINT NOT NULL,
    PRIMARY KEY (service, position, cut_time)
) WITHOUT ROWID;
