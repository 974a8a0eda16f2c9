// Package sqldb opens a database by its URL, brings its schema up to date, and runs transactions
// with the retry that the engine needs. It speaks to three engines: SQLite in the process,
// PostgreSQL, and CockroachDB, which uses PostgreSQL's protocol but needs its transactions retried
// in another way. The server tells which of the last two it is; the URL does not.
//
//	DB.InTx ─▶ Tx ─▶ transaction ─┐                  ┌─▶ fileSession ──▶ modernc.org/sqlite
//	                              ├─▶ Session.Send ──┤
//	DB.Run, Query, QueryRow, Exec ┘                  └─▶ serverSession ─▶ pgx ─▶ PostgreSQL,
//	                                                                             CockroachDB
//
// # The door
//
// A [Session] (door.go) is one connection, and all work goes through its method Send, which takes a
// list of statements. It has two back ends, in the files sqlite*.go and server*.go. Tests put
// another session around it ([Wrap]) and let any statement fail.
//
// # The life of a transaction
//
//  1. [DB.InTx] takes a session and calls the function of its caller with a [Tx]. Nothing is sent
//     yet.
//  2. The first statements go together with the BEGIN ([Tx.Run], [Tx.Exec], [Tx.QueryRow]). Several
//     statements are a [Pipeline], and a server gets them in one round trip.
//  3. The last statements go together with the COMMIT ([Tx.RunAtCommit]). Each of them may say how
//     many rows it must change ([Pipeline.Must]).
//  4. After a conflict with another transaction, everything is done again (retry.go). If the answer
//     to the COMMIT is lost, the error is [ErrUnknownOutcome].
//
// # What each engine does
//
//	                SQLite                   PostgreSQL                 CockroachDB
//	begins with     BEGIN IMMEDIATE          BEGIN … SERIALIZABLE       the same, SAVEPOINT
//	commits with    COMMIT, stamped          COMMIT                     RELEASE, COMMIT
//	counts rows     here                     there: omi_must_change     here, before the RELEASE
//	retries         from the beginning       from the beginning         from the savepoint
//	many rows       lists of fixed lengths   an array for each column   lists
//	is watched by   fault, checkpointer      sessions (eras)            sessions (eras)
//
// # Where to find it
//
//   - For all engines: door.go, pipeline.go, transaction.go; values.go (SQL that differs);
//     errors.go and retry.go; owner.go and migrate.go.
//   - A server: server.go opens it, server_settings.go says what each session is told,
//     server_session.go sends and judges, server_pooled.go is for connection poolers.
//   - SQLite: sqlite.go opens it, sqlite_session.go runs statements, sqlite_prepared.go keeps them
//     prepared and writes ? for $1. sqlite_fault.go, sqlite_stamp.go and sqlite.go notice another
//     file, or another file's log, and sqlite_restore.go puts a copy in place.
//     sqlite_checkpoint.go keeps the log short.
package sqldb
