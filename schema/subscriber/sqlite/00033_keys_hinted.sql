-- +goose NO TRANSACTION
-- +goose Up
-- Whoever inserts a key leaves a hint to it. A release of before, which has no omi_hint, gets an error.
-- +goose StatementBegin
CREATE TRIGGER IF NOT EXISTS keys_hinted AFTER INSERT ON keys BEGIN
    INSERT INTO new_key_hints (hint, service) VALUES (omi_hint(new.public_key), new.service) ON CONFLICT DO NOTHING;
END;
-- +goose StatementEnd
