-- +goose NO TRANSACTION
-- +goose Up
-- The services that are there. An app's id is a target without its last label.
INSERT INTO app_use (app_id, services, minute, minute_changes, day, day_changes)
    SELECT rtrim(rtrim(target, replace(target, '.', '')), '.'), count(*), 0, 0, 0, 0 FROM services WHERE true GROUP BY 1
    ON CONFLICT (app_id) DO NOTHING;
