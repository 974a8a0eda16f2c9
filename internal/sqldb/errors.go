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

// ErrUnknownOutcome says that a transaction may have been committed or not: the connection broke between the COMMIT and
// its answer, or the server doesn't know. Only reading the database again settles it.
var ErrUnknownOutcome = errors.New("the outcome of the commit is unknown")

// What [DB.Ping] finds wrong with a server that answers, or that lets nobody in.
var (
	ErrReadOnly = errors.New("the server takes no writes: it is a standby, or default_transaction_read_only is on for it, the database or the role")
	ErrBusy     = errors.New("all sessions with the server are in use, and wait for it")
	ErrNoTables = errors.New("its tables are empty or hidden from this role: restore the database, or grant the role what it needs")
)

// errNoAnswer is why a server that is silent is given up.
var errNoAnswer = errors.New("the server does not answer")

// errUnreplicated says that a COMMIT is done on this server, and that nothing is known of its standby.
var errUnreplicated = errors.New("the server's wait for its standby was cancelled: the transaction is on the server, and may not be on the standby")

// Transient says whether err is a fault of the environment, which the same call may not meet again later: a server that
// is unreachable, restarting or overloaded, a full disk, a lost race with another transaction, a deadline. An error
// with ErrUnknownOutcome in it can be transient too, and has to be settled before that call is made again. The end of
// a context by cancellation is not transient: somebody wants to stop. Nor is what a person has to change, [ErrURL].
// [ErrFault] is transient in this sense: what was asked is not at fault, and the next process can do it.
func Transient(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, ErrURL) {
		return false
	}
	if errors.Is(err, ErrFault) {
		return true
	}
	if takesNoWrites(err) || errors.Is(err, errUnreplicated) {
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

// Lost says whether the connection to the server is lost, so that it may be another server that answers next. A file has no
// such connection.
func (db *DB) Lost(err error) bool {
	if err == nil || db.engine == SQLite || errors.Is(err, context.Canceled) {
		return false
	}
	var answer *pgconn.PgError
	if !errors.As(err, &answer) {
		return broken(err)
	}
	return takesNoWrites(err) || stops(answer.Code) || class(answer.Code) == "08"
}

// Era changes when sessions with the server were lost, or given up: what was read before may be what another server lacks, also if
// no error told so, since database/sql replaces a session that it finds dead. A file has one for ever.
func (db *DB) Era() int64 {
	if db.sessions == nil {
		return 0
	}
	return db.sessions.era.Load()
}

// stops says whether a server stops, has crashed or starts.
func stops(state string) bool { return state == "57P01" || state == "57P02" || state == "57P03" }

// takesNoWrites says whether a server has refused a statement, or a connection, since it is a standby or was set to be read-only.
// On a standby, a transaction is refused for its isolation before it writes anything: of what a server can't do (0A000), that
// alone comes from this routine, whose name is in no language.
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

// cannot is the SQLSTATE of what a server can't do.
const cannot = "0A000"

// elsewhere says whether the next attempt needs another session, which may lead to another server.
func elsewhere(err error) bool {
	var answer *pgconn.PgError
	return takesNoWrites(err) || errors.As(err, &answer) && stops(answer.Code)
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
	case "08", "53", "58": // connection; disk, memory or connections exhausted; I/O, or (CockroachDB) an unavailable range
		return true
	}
	return false
}

// finalState judges the SQLSTATE by which a server refuses a connection: it says so until somebody changes the URL, or what the
// server knows of the user and the database.
func finalState(state string) bool {
	switch class(state) {
	case "0A", "22", "28", "3D", "42": // what it can't do, a value, credentials, the database, a name or a privilege
		return true
	}
	return false
}

// class is the part of a SQLSTATE that groups related ones.
func class(state string) string { return state[:min(2, len(state))] }

// sqliteCode returns SQLite's primary result code; the higher bits of an extended code, as of SQLITE_BUSY_SNAPSHOT, say
// only how it came to it.
func sqliteCode(err error) (int, bool) {
	if answer := sqliteError(err); answer != nil {
		return answer.Code() & 0xff, true
	}
	return 0, false
}

// sqliteError returns SQLite's own error, or nil.
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

// broken says whether err comes from the way to the server, not from the server. A connection that can't be made is such a fault
// whatever the reason: a server that starts, stops or gives way to another says anything. Only a certificate that is not the
// one that the URL asks for may be an attack.
func broken(err error) bool {
	return !uncertified(err) && (cut(err) || connecting(err))
}

// cut says whether the way to the server, or to the disk, is not there or broke off.
func cut(err error) bool {
	for _, target := range []error{
		driver.ErrBadConn, errNoAnswer, context.DeadlineExceeded, io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, pgconn.ErrConnClosed,
	} {
		if errors.Is(err, target) {
			return true
		}
	}
	// Dialling, resolving, reading and writing, resets and timeouts are all such, and so is what crypto/tls says.
	var network net.Error
	return errors.As(err, &network) || pgconn.SafeToRetry(err) || exhausted(err)
}

// exhausted says whether the system lacks something that it may have again.
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

// connecting says whether err is of a connection that could not be made.
func connecting(err error) bool { return errors.As(err, new(*pgconn.ConnectError)) }

// uncertified says whether the server's certificate is not one that the URL accepts.
func uncertified(err error) bool { return errors.As(err, new(*tls.CertificateVerificationError)) }

// doubtful says whether a fault that may pass may also be there to stay: a server without TLS refuses it for ever, and one that
// restarts may do so once.
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

// refusedTLS says whether the one host of the URL has no TLS, and the URL allows nothing else. A name
// such as localhost may have a second address, where nothing listens: that one is no reason to wait.
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

// wantsTLS says whether a server lets nobody in without TLS: a secure CockroachDB, or PgBouncer. They
// say so by a protocol violation, as which they report much that passes by itself. PostgreSQL says
// 28000.
func wantsTLS(answer *pgconn.PgError) bool {
	return answer.Code == "08P01" && strings.Contains(answer.Message, "SSL") && strings.Contains(answer.Message, "required")
}

// conflict says whether running the transaction again, from its start, is the engine's way to resolve err.
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

// Duplicate says whether err is that a row has a unique key which another row has. The transaction can't go on then.
func Duplicate(err error) bool {
	var answer *pgconn.PgError
	if errors.As(err, &answer) {
		return answer.Code == "23505"
	}
	var file *sqlite.Error
	return errors.As(err, &file) &&
		(file.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || file.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
}

// unknownOutcome says whether err, the answer to a COMMIT, leaves open what became of the transaction.
func (e Engine) unknownOutcome(err error) bool {
	if e == SQLite {
		// Every other failure leaves or rolls back the transaction. After a failed write or sync the frames may lie
		// in the log whole, to be found by whoever opens the file after a crash.
		code, ok := sqliteCode(err)
		return ok && code == sqlite3.SQLITE_IOERR
	}
	var answer *pgconn.PgError
	if errors.As(err, &answer) {
		return !rolledBack(answer.Code)
	}
	// No answer. pgconn.SafeToRetry, and driver.ErrBadConn which pgx makes of it, are no evidence that the COMMIT wasn't
	// sent: pgx v5.12 meets the lost connection twice while it reads the answer, and reports the second time, "conn
	// closed", which claims that nothing was sent.
	return !errors.Is(err, sql.ErrTxDone) && !errors.Is(err, pgx.ErrTxCommitRollback)
}

// rolledBack lists the SQLSTATEs by which a server says that it did not commit. Any other is open: a server told to
// stop, for one, says so (57P01) also after the commit, if it still waits for a standby.
func rolledBack(state string) bool {
	switch class(state) {
	case "22", "23", "25", "27", "42", "44", "P0": // data, constraint, transaction state, trigger, access, check, raised
		return true
	}
	return strings.HasPrefix(state, "40") && state != "40003"
}
