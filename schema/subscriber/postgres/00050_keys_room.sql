-- +goose NO TRANSACTION
-- +goose Up
-- As the one before: every key but the last changes once, when it gets its end.
ALTER TABLE keys SET (fillfactor = 50);
