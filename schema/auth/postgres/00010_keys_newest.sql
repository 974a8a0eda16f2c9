-- +goose NO TRANSACTION
-- +goose Up
-- The newest keys of a service that has had very many, for clients that ask whose signature this
-- was. The first events of a service are left out: most services have no others, and pay nothing. A
-- position below 0 is that of the event which replaced the key.
CREATE INDEX IF NOT EXISTS keys_newest ON keys (service, position)
    WHERE position > 256 OR position < 0;
