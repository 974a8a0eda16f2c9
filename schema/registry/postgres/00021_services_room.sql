-- +goose NO TRANSACTION
-- +goose Up
-- PostgreSQL leaves room on each page for the next versions of its rows: one that finds room beside the last one needs no new
-- entry in any index. CockroachDB ignores this.
ALTER TABLE services SET (fillfactor = 70);
