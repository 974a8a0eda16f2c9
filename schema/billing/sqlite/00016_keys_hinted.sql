-- +goose NO TRANSACTION
-- +goose Up
-- Every new key leaves a hint.
-- +goose StatementBegin
CREATE TRIGGER IF NOT EXISTS keys_hinted AFTER INSERT ON keys BEGIN
    INSERT INTO new_key_hints (hint, service) VALUES (omi_hint(new.public_key), new.service)
    ON CONFLICT DO NOTHING;
END;
-- +goose StatementEnd
