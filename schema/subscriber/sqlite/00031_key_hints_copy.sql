-- +goose NO TRANSACTION
-- +goose Up
-- Those of the keys that are there. An Auth Provider, which nobody asks, has dropped its index of keys, and needs none of them.
INSERT INTO key_hints (hint, service)
    SELECT omi_hint(public_key), service FROM keys
    WHERE EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'index' AND name = 'keys_by_public_key')
    ORDER BY 1, 2 ON CONFLICT DO NOTHING;
