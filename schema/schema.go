// Package schema holds the databases' schemas as migrations, for SQLite and for PostgreSQL and CockroachDB, which
// share theirs, but for files whose names say that they are for PostgreSQL. Each file is one idempotent statement, applied in the
// order of the names by internal/sqldb.
// The folder messages and asyncapi.yaml, which describe the protocol for tools, are not part of any program.
//
// Code runs before and after each migration: a change adds what the next release needs, and drops only what no
// running release reads.
package schema
