-- +goose NO TRANSACTION
-- +goose Up
-- Which database this is, and what its processes leave for one another. The row 'database' has a
-- random id that never changes. Any other row is a mark that tells a process whether another one
-- has this very database, or a copy of it.
CREATE TABLE IF NOT EXISTS identity (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;
