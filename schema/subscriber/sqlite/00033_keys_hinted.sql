-- +goose NO TRANSACTION
-- +goose Up
-- Whoever inserts a key, of whatever release, leaves a hint to it.
-- +goose StatementBegin
CREATE TRIGGER IF NOT EXISTS keys_hinted AFTER INSERT ON keys BEGIN
    INSERT INTO new_key_hints (hint, service) VALUES (substr(new.public_key, 1, 6), new.service) ON CONFLICT DO NOTHING;
END;
-- +goose StatementEnd
