-- +goose NO TRANSACTION
-- +goose Up
-- The event's own timestamp, which is signed with its nonce; 0: applied by a process that did not write it yet. It is there
-- for SQLite, whose rows are kept in its order, and PostgreSQL (00051). On CockroachDB they are found by their nonce, of which
-- there are no ascending ones: those would all go to one node.
ALTER TABLE applied ADD COLUMN IF NOT EXISTS timestamp BIGINT NOT NULL DEFAULT 0;
