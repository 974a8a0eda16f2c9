package sqldb

import (
	"context"
	"crypto/tls"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// ErrUnknownOutcome means that a transaction may have been committed or not: the connection broke
// between the COMMIT and its answer, or the server doesn't know. Only reading the database again
// tells.
var ErrUnknownOutcome = errors.New("the outcome of the commit is unknown")

// What [DB.Ping] finds wrong with a server that answers, or that admits no connection.
var (
	ErrReadOnly = errors.New("the server takes no writes: it is a standby, or default_transaction_read_only is on for it, the database or the role")
	ErrBusy     = errors.New("all sessions with the server are in use, and wait for it")
	ErrNoTables = errors.New("its tables are empty or hidden from this role: restore the database, or grant the role what it needs")
)

// errNoAnswer is the reason for giving up a silent server.
var errNoAnswer = errors.New("the server does not answer")

// errUnreplicated means that a COMMIT is done on this server, but perhaps not on its standby.
var errUnreplicated = errors.New("the server's wait for its standby was cancelled: the transaction is on the server, and may not be on the standby")

// Transient reports whether err is a fault of the environment that the same call may not meet
// again: a server that is unreachable, restarting or overloaded, a full disk, a lost race with
// another transaction, a deadline. An error with ErrUnknownOutcome in it can be transient too; the
// outcome must be found out before the call is made again. The cancellation of a context is not
// transient, because the caller wants to stop, and neither is [ErrURL], which a person must
// correct. [ErrFault] is transient in this sense: the call is not at fault, and the next process
// can make it.
func Transient(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, ErrURL) {
		return false
	}
	if errors.Is(err, ErrFault) {
		return true
	}
	if takesNoWrites(err) || unprepared(err) || errors.Is(err, errUnreplicated) {
		return true
	}
	var answer *pgconn.PgError
	if errors.As(err, &answer) {
		return transientState(answer.Code) || connecting(err) && !finalState(answer.Code)
	}
	if code, ok := sqliteCode(err); ok {
		return transientCode(code)
	}
	return broken(err)
}

// Disconnected reports whether the connection to the server is lost, so that the next answer may
// come from another server. A file has no connection to lose.
func (db *DB) Disconnected(err error) bool {
	if err == nil || db.engine == SQLite || errors.Is(err, context.Canceled) {
		return false
	}
	var answer *pgconn.PgError
	if !errors.As(err, &answer) {
		return broken(err)
	}
	return takesNoWrites(err) || stops(answer.Code) || class(answer.Code) == "08"
}

// Era changes when sessions with the server were lost or given up: another server may lack what was
// read before. It changes even if no call has failed, because database/sql replaces a dead session
// silently. A file has one era.
func (db *DB) Era() int64 {
	if db.sessions == nil {
		return 0
	}
	return db.sessions.era.Load()
}

// stops reports whether a server is stopping, has crashed or is starting.
func stops(state string) bool { return state == "57P01" || state == "57P02" || state == "57P03" }

// takesNoWrites reports whether a server has refused a statement or a connection because it is a
// standby or read-only. On a standby, a transaction is refused for its isolation level before it
// writes. Of the features that a server can't provide (0A000), only that one comes from this
// routine, and a routine's name is the same in all languages.
func takesNoWrites(err error) bool {
	if errors.Is(err, ErrReadOnly) {
		return true
	}
	var answer *pgconn.PgError
	if !errors.As(err, &answer) {
		return false
	}
	return answer.Code == "25006" || answer.Code == cannot &&
		(answer.Routine == "GetSerializableTransactionSnapshot" || strings.Contains(answer.Message, "hot standby"))
}

// unprepared reports whether a statement that the session has prepared can't be run any more: the
// types of its answer have changed, by a migration while this process runs, or the session has lost
// its statements (DISCARD ALL). A new session prepares it again.
func unprepared(err error) bool {
	const noSuchStatement = "26000"
	var answer *pgconn.PgError
	return errors.As(err, &answer) &&
		(answer.Code == noSuchStatement || answer.Code == cannot && answer.Routine == "RevalidateCachedQuery")
}

// cannot is the SQLSTATE for a feature that a server doesn't have.
const cannot = "0A000"

// elsewhere reports whether the next attempt needs another session, which may lead to another
// server. If a statement can't be run as it was prepared, all sessions have such statements.
func elsewhere(err error) bool {
	var answer *pgconn.PgError
	return takesNoWrites(err) || unprepared(err) || errors.As(err, &answer) && stops(answer.Code)
}

// transientState judges a SQLSTATE.
func transientState(state string) bool {
	switch state {
	case "40001", "40P01", // serialization failure (CockroachDB: every conflict), deadlock
		"40003",          // statement completion unknown
		"CR000",          // a retryable error of old CockroachDB versions
		"25P03",          // the server ended a transaction that idled too long
		"55P03", "57014", // lock not available, statement timeout
		"57P01", "57P02", "57P03", "57P05": // the server stops, crashed, starts; idle session ended
		return true
	}
	switch class(state) {
	// Connection; disk, memory or connections exhausted; I/O, or (CockroachDB) an unavailable
	// range.
	case "08", "53", "58":
		return true
	}
	return false
}

// finalState reports whether a server that refuses a connection with this SQLSTATE will go on
// refusing it until a person changes the URL, or the user or database on the server.
func finalState(state string) bool {
	switch class(state) {
	// A missing feature, a value, credentials, the database, a name or a privilege.
	case "0A", "22", "28", "3D", "42":
		return true
	}
	return false
}

// class returns the part of a SQLSTATE that groups related ones.
func class(state string) string { return state[:min(2, len(state))] }

// sqliteCode returns SQLite's primary result code. The higher bits of an extended code, such as
// SQLITE_BUSY_SNAPSHOT, only give the cause.
func sqliteCode(err error) (int, bool) {
	if answer := sqliteError(err); answer != nil {
		return answer.Code() & 0xff, true
	}
	return 0, false
}

// sqliteError returns the SQLite error in err, or nil.
func sqliteError(err error) *sqlite.Error {
	var answer *sqlite.Error
	errors.As(err, &answer)
	return answer
}

func transientCode(code int) bool {
	switch code {
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR,
		sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PROTOCOL:
		return true
	}
	return false
}

// broken reports whether err comes from the way to the server, and not from the server. A
// connection that can't be made is such a fault for any reason: a server that starts, stops or
// gives way to another may answer anything. Only a certificate that the URL doesn't accept is not,
// because it may be an attack.
func broken(err error) bool {
	return !uncertified(err) && (cut(err) || connecting(err))
}

// cut reports whether the way to the server, or to the disk, is missing or broke.
func cut(err error) bool {
	for _, target := range []error{
		driver.ErrBadConn, errNoAnswer, context.DeadlineExceeded, io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, pgconn.ErrConnClosed,
	} {
		if errors.Is(err, target) {
			return true
		}
	}
	// Dialling, resolving, reading and writing, resets and timeouts are network errors, and so are
	// those of crypto/tls.
	var network net.Error
	return errors.As(err, &network) || pgconn.SafeToRetry(err) || exhausted(err)
}

// exhausted reports whether the system lacks a resource that it may have again.
func exhausted(err error) bool {
	for _, number := range []syscall.Errno{
		syscall.ENOSPC, syscall.EDQUOT, syscall.EIO, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EAGAIN, syscall.EINTR,
		syscall.ESTALE, syscall.EBUSY,
	} {
		if errors.Is(err, number) {
			return true
		}
	}
	return false
}

// connecting reports whether err is about a connection that could not be made.
func connecting(err error) bool { return errors.As(err, new(*pgconn.ConnectError)) }

// uncertified reports whether the URL does not accept the server's certificate.
func uncertified(err error) bool { return errors.As(err, new(*tls.CertificateVerificationError)) }

// doubtful reports whether a fault that may pass may also be permanent: a server without TLS
// refuses TLS for ever, and a server that restarts may do so once.
func doubtful(err error) bool {
	if code, ok := sqliteCode(err); ok {
		return code == sqlite3.SQLITE_CANTOPEN
	}
	if takesNoWrites(err) {
		return false
	}
	var answer *pgconn.PgError
	if errors.As(err, &answer) {
		return !transientState(answer.Code)
	}
	return refusedTLS(err) || !cut(err)
}

// refusedTLS reports whether the only host of the URL has no TLS although the URL demands it. A
// name such as localhost may have a second address with no server: that is no reason to wait.
func refusedTLS(err error) bool {
	var connect *pgconn.ConnectError
	if !errors.As(err, &connect) || connect.Config.TLSConfig == nil {
		return false
	}
	for _, other := range connect.Config.Fallbacks {
		if other.TLSConfig == nil || other.Host != connect.Config.Host || other.Port != connect.Config.Port {
			return false
		}
	}
	return strings.Contains(err.Error(), "server refused TLS connection")
}

// wantsTLS reports whether a server admits no connection without TLS: a secure CockroachDB, or
// PgBouncer. They answer with a protocol violation, which they also use for much that passes by
// itself. PostgreSQL answers 28000.
func wantsTLS(answer *pgconn.PgError) bool {
	return answer.Code == "08P01" && strings.Contains(answer.Message, "SSL") && strings.Contains(answer.Message, "required")
}

// conflict reports whether the engine expects the transaction to be run again from its start.
func conflict(err error) bool {
	if errors.Is(err, ErrUnknownOutcome) {
		return false
	}
	var answer *pgconn.PgError
	if errors.As(err, &answer) {
		return answer.Code == "40001" || answer.Code == "40P01"
	}
	code, ok := sqliteCode(err)
	return ok && code == sqlite3.SQLITE_BUSY
}

// Duplicate reports whether err means that another row already has a row's unique key. The
// transaction can't go on then.
func Duplicate(err error) bool {
	var answer *pgconn.PgError
	if errors.As(err, &answer) {
		return answer.Code == "23505"
	}
	var file *sqlite.Error
	return errors.As(err, &file) &&
		(file.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || file.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
}

// unknownOutcome reports whether err, the answer to a COMMIT, leaves open what became of the
// transaction.
func (e Engine) unknownOutcome(err error) bool {
	if e == SQLite {
		// Every other failure leaves or rolls back the transaction. After a failed write or sync,
		// all frames may still be in the log, where the process that opens the file after a crash
		// finds them.
		code, ok := sqliteCode(err)
		return ok && code == sqlite3.SQLITE_IOERR
	}
	var answer *pgconn.PgError
	if errors.As(err, &answer) {
		return !rolledBack(answer.Code)
	}
	// There was no answer. pgconn.SafeToRetry, and driver.ErrBadConn which pgx makes of it, don't
	// prove that the COMMIT wasn't sent: pgx v5.12 meets the lost connection twice while it reads
	// the answer, and reports the second time, "conn closed", which claims that nothing was sent.
	return !errors.Is(err, sql.ErrTxDone) && !errors.Is(err, pgx.ErrTxCommitRollback)
}

// rolledBack reports whether a server with this SQLSTATE says that it did not commit. Any other
// leaves it open: a server that is told to stop, for example, reports that (57P01) even after the
// commit, if it still waits for a standby.
func rolledBack(state string) bool {
	switch class(state) {
	// Data, constraint, transaction state, statement name, trigger, access, check, raised.
	case "22", "23", "25", "26", "27", "42", "44", "P0":
		return true
	}
	return strings.HasPrefix(state, "40") && state != "40003"
}
