-- +goose NO TRANSACTION
-- +goose Up
-- Which database this is, and what the processes on it leave for one another: the row 'database' has a random id that never
-- changes; any other row is a mark by which a process finds out whether another one has this very database, or a copy of it.
CREATE TABLE IF NOT EXISTS identity (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);
