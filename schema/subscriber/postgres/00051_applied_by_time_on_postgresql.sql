-- +goose NO TRANSACTION
-- +goose Up
-- The nonces in the order in which events are made, so that those of a batch lie side by side at the end of the index. In the
-- order of the nonces, which are random, each changed a page of its own: with a million, most had to be read before, and were
-- written whole to the log. Those from before there was a timestamp beside them have 0 for it.
ALTER TABLE applied DROP CONSTRAINT IF EXISTS applied_pkey, DROP CONSTRAINT IF EXISTS applied_by_time,
    ADD CONSTRAINT applied_by_time PRIMARY KEY (timestamp, nonce);
