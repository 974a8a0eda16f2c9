-- What the registry's roles may do in its database. By an administrator, connected to it, after each omi-registry migrate; it
-- does no harm when it is run twice. Tables that come later are covered at once by the default privileges; what is taken away
-- at the end, for each table, waits for the next run.

GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO omi_registry;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO omi_registry_reader;
ALTER DEFAULT PRIVILEGES FOR ROLE omi_registry_owner IN SCHEMA public
  GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO omi_registry;
ALTER DEFAULT PRIVILEGES FOR ROLE omi_registry_owner IN SCHEMA public GRANT SELECT ON TABLES TO omi_registry_reader;
-- On PostgreSQL a service that is bound gets its id from a sequence. In CockroachDB the registry chooses the ids; there, all tables
-- are all sequences too, which nobody has to set or read.
REVOKE SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA public FROM omi_registry, omi_registry_reader;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO omi_registry;
ALTER DEFAULT PRIVILEGES FOR ROLE omi_registry_owner IN SCHEMA public GRANT USAGE ON SEQUENCES TO omi_registry;

-- History is only ever appended to: whoever breaks into the registry's process can't unmake what happened.
REVOKE UPDATE, DELETE ON history FROM omi_registry;
-- A Master Key may be replaced (omi-registry app replace-master), and the one before it is kept, as ended for ever. No app and no
-- service is ever forgotten.
REVOKE DELETE ON apps FROM omi_registry;
REVOKE UPDATE, DELETE ON reserved_keys FROM omi_registry;
REVOKE DELETE ON services FROM omi_registry;
-- What an app has used up is never forgotten.
REVOKE DELETE ON app_use FROM omi_registry;
-- The policy that all replicas share may be changed (--change-policy), and no part of it is ever missing.
REVOKE DELETE ON policy FROM omi_registry;
-- Whose database it is, and the schema's version, are the owner's to write.
REVOKE INSERT, UPDATE, DELETE ON database_owner FROM omi_registry;
REVOKE INSERT, UPDATE, DELETE ON goose_db_version FROM omi_registry;
REVOKE INSERT, UPDATE, DELETE ON goose_lock FROM omi_registry;
