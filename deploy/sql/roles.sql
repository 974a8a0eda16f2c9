-- Makes the databases and their roles, on PostgreSQL (14 or later) and CockroachDB (23.2 or later).
-- An administrator runs it once:
--
--   psql -f roles.sql                                or  cockroach sql -f roles.sql
--
-- Then, now and at each new version, in this order:
--
--   omi-registry migrate --database-url postgres://omi_registry_owner@…/registry
--   psql -d registry -f registry.sql
--
-- If the administrator has a password, cockroach sql asks for it again at each \connect. How a role
-- authenticates (ALTER ROLE … PASSWORD, a certificate) is the server administrator's choice.

CREATE ROLE omi_registry_owner LOGIN;  -- only migrates
CREATE ROLE omi_registry LOGIN;        -- serves, and omi-registry app, recover, deadletters retry
CREATE ROLE omi_registry_reader LOGIN; -- omi-registry check, deadletters list and show
CREATE ROLE omi_authsub LOGIN;
CREATE ROLE omi_billingsub LOGIN;

CREATE DATABASE registry;
CREATE DATABASE authsub;
CREATE DATABASE billingsub;

-- Each party owns its database. A subscriber migrates by itself when it starts.
ALTER DATABASE registry OWNER TO omi_registry_owner;
ALTER DATABASE authsub OWNER TO omi_authsub;
ALTER DATABASE billingsub OWNER TO omi_billingsub;

-- No other role may connect. By default, PostgreSQL and CockroachDB let every role connect to every
-- database. CockroachDB does so whatever is revoked: there, the schema keeps others out, see below.
REVOKE ALL ON DATABASE registry FROM PUBLIC;
REVOKE ALL ON DATABASE authsub FROM PUBLIC;
REVOKE ALL ON DATABASE billingsub FROM PUBLIC;
GRANT CONNECT ON DATABASE registry TO omi_registry, omi_registry_reader;

-- Before the first migration, because a role owns the tables that it makes. CockroachDB, and
-- PostgreSQL before 15, let every role make tables in the schema public. That schema stays the
-- administrator's when a database gets its owner.
\connect registry
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO omi_registry_owner;
GRANT USAGE ON SCHEMA public TO omi_registry, omi_registry_reader;

\connect authsub
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO omi_authsub;

\connect billingsub
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO omi_billingsub;
