// Package ledger is the registry's database: all of its SQL, with one set of statements for SQLite,
// PostgreSQL and CockroachDB. It takes and returns the types of package decision, and decides
// nothing itself.
//
//	Ledger   what each request and each question needs: load the state, commit a batch, look up
//	Outbox   messages of committed changes until their streams have them, under leases
//	Letters  requests that could not be decided
//	Admin    the operators' work: apps, Master Keys, the policy, the check, the recovery
//
// The tables are in schema/registry. A new column of a service is added there, in decision.Service,
// in serviceColumns and columnsOf (load.go), and in updateServices, insertTypes and rowsOfServices
// (commit.go).
package ledger
