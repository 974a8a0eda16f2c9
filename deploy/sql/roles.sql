-- The databases and their roles, on PostgreSQL (14 or later) and CockroachDB (23.2 or later) alike. Once, by an administrator:
--
--   psql -f roles.sql                           or  cockroach sql -f roles.sql
--   omi-registry migrate --database-url postgres://omi_registry_owner@…/registry       here and at each new version
--   psql -d registry -f registry.sql            here and at each new version, after it
--
-- Where the administrator has a password, cockroach sql asks for it again at each \connect.
-- How a role proves who it is (ALTER ROLE … PASSWORD, a certificate) is for the server's administrator to say.

CREATE ROLE omi_registry_owner LOGIN;  -- migrates, and nothing else
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

-- Nobody else comes in. As delivered, PostgreSQL and CockroachDB let every role connect to every database. CockroachDB does so
-- whatever is revoked: what keeps others out there is the schema, below.
REVOKE ALL ON DATABASE registry FROM PUBLIC;
REVOKE ALL ON DATABASE authsub FROM PUBLIC;
REVOKE ALL ON DATABASE billingsub FROM PUBLIC;
GRANT CONNECT ON DATABASE registry TO omi_registry, omi_registry_reader;

-- Before the first migration, as whoever makes a table owns it: CockroachDB, and PostgreSQL before 15, let every role make
-- tables in the schema public, and leave that schema to the administrator when a database gets its owner.
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
