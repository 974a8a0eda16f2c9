-- Says what the registry's roles may do in its database. An administrator runs it in that database,
-- after each omi-registry migrate. Running it twice does no harm. The default privileges cover
-- later tables at once; the REVOKEs at the end, one for each table, wait for the next run.

GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO omi_registry;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO omi_registry_reader;
ALTER DEFAULT PRIVILEGES FOR ROLE omi_registry_owner IN SCHEMA public
  GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO omi_registry;
ALTER DEFAULT PRIVILEGES FOR ROLE omi_registry_owner IN SCHEMA public GRANT SELECT ON TABLES TO omi_registry_reader;
-- On PostgreSQL a service that is bound gets its ID from a sequence. On CockroachDB the registry
-- chooses the IDs. There, ALL SEQUENCES means all tables, too, and no role needs to set or read
-- these.
REVOKE SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA public FROM omi_registry, omi_registry_reader;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO omi_registry;
ALTER DEFAULT PRIVILEGES FOR ROLE omi_registry_owner IN SCHEMA public GRANT USAGE ON SEQUENCES TO omi_registry;
-- The function with which PostgreSQL checks a commit. By default every role may call it, but an
-- administrator may have changed that (ALTER DEFAULT PRIVILEGES).
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO omi_registry;

-- History is only ever appended to: an intruder in the registry's process can't undo what happened.
REVOKE UPDATE, DELETE ON history FROM omi_registry;
-- A Master Key may be replaced (omi-registry app replace-master), and the earlier one stays listed
-- as ended. No app and no service is ever forgotten.
REVOKE DELETE ON apps FROM omi_registry;
REVOKE UPDATE, DELETE ON reserved_keys FROM omi_registry;
REVOKE DELETE ON services FROM omi_registry;
-- What an app has used up is never forgotten.
REVOKE DELETE ON app_use FROM omi_registry;
-- The policy that all replicas share may be changed (--change-policy), but no part of it may go.
REVOKE DELETE ON policy FROM omi_registry;
-- Only the owner writes whose database it is, and the schema's version.
REVOKE INSERT, UPDATE, DELETE ON database_owner FROM omi_registry;
REVOKE INSERT, UPDATE, DELETE ON goose_db_version FROM omi_registry;
REVOKE INSERT, UPDATE, DELETE ON goose_lock FROM omi_registry;
