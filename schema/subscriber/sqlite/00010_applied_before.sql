-- +goose NO TRANSACTION
-- +goose Up
-- The nonces from before there was a timestamp beside them have 0 for it.
INSERT INTO applied_by_time (timestamp, nonce) SELECT 0, nonce FROM applied WHERE true ORDER BY nonce ON CONFLICT DO NOTHING;
