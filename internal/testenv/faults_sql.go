package testenv

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"io"
	"io/fs"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing/fstest"

	"modernc.org/sqlite/vfs"

	"omiappreg.org/keyrotation/internal/sqldb"
)

// Session makes the statements of a session pass through the faults; it is an argument for
// sqldb.Wrap. Each statement is a step, except a ROLLBACK: a server rolls back even if the client
// can't reach it, and SQLite does when the process ends. A step fails with an error that the driver
// itself returns:
//
//   - For a server, it is the error of a broken connection, before the statement is sent or while
//     its answer is on the way. The connection is lost, and so is a transaction that was not
//     committed.
//   - For SQLite, it is the error of a full or broken disk. The connection stays. A COMMIT that
//     fails has rolled back, unless the fault says that it was done.
func (f *Faults) Session(engine sqldb.Engine, inner sqldb.Session) sqldb.Session {
	return &faultySession{Session: inner, faults: f, file: engine == sqldb.SQLite}
}

// faultySession is such a session. One goroutine at a time uses it.
type faultySession struct {
	sqldb.Session
	faults *Faults
	file   bool // SQLite, not a server
	broken bool
}

// Send sends the statements before the one that fails, and that one too if only its answer is lost.
func (s *faultySession) Send(ctx context.Context, statements []sqldb.Statement) (done int, err error) {
	if s.broken {
		return 0, driver.ErrBadConn
	}
	for i := range statements {
		if statements[i].Query == "ROLLBACK" {
			continue
		}
		strikes := s.faults.step(stepOf(statements[i].Query))
		if strikes == passed {
			continue
		}
		before := statements[:i]
		if strikes == lost {
			before = statements[:i+1]
		}
		if len(before) > 0 {
			if done, err := s.Session.Send(ctx, before); err != nil {
				return done, err
			}
		}
		s.broken = !s.file
		return 0, s.failure(strikes == lost)
	}
	return s.Session.Send(ctx, statements)
}

// Close closes a connection that is broken, and so ends its transaction.
func (s *faultySession) Close() {
	if s.broken {
		s.Discard()
		return
	}
	s.Session.Close()
}

// failure is the error of a step that fails. A step can fail undone in two ways; its number chooses
// one.
func (s *faultySession) failure(done bool) error {
	odd := s.faults.fault.Step%2 == 1
	switch {
	case s.file && (done || odd):
		return sqliteErrors().broken
	case s.file:
		return sqliteErrors().full
	case done:
		return fmt.Errorf("receive message failed: %w", io.ErrUnexpectedEOF)
	case odd:
		return driver.ErrBadConn // nothing was sent; outside a transaction, sqldb sends it again
	default:
		return fmt.Errorf("write failed: %w", &net.OpError{Op: "write", Net: "tcp", Err: syscall.ECONNRESET})
	}
}

// stepOf returns the name of a step: the first words of the statement.
func stepOf(query string) string {
	words := strings.Fields(strings.TrimPrefix(query, "WITH changed AS (")) // sqldb counts the rows of such a statement
	if len(words) > 3 && words[1] == "OR" && words[2] == "FAIL" {           // see sqldb.Engine.Insert
		words = slices.Delete(words, 1, 3)
	}
	switch {
	case len(words) > 0 && words[0] == "BEGIN":
		words = words[:1]
	case len(words) > 2 && (words[0] == "INSERT" || words[0] == "DELETE"):
		words = words[:3]
	case len(words) > 1 && words[0] == "UPDATE":
		words = words[:2]
	case len(words) > 0 && words[0] == "SELECT":
		for i, word := range words[:len(words)-1] {
			if word == "FROM" {
				words = []string{"SELECT FROM", words[i+1]}
				break
			}
		}
	}
	return strings.Join(words[:min(3, len(words))], " ")
}

// sqliteFailures are SQLite's own errors.
type sqliteFailures struct {
	full   error // SQLITE_FULL
	broken error // SQLITE_IOERR
}

// sqliteErrors makes SQLite fail as on a full disk, and as on a disk that can't be read. Other code
// can't construct the errors of its driver.
//
//nolint:gochecknoglobals // it is set once, and never changes
var sqliteErrors = sync.OnceValue(func() sqliteFailures {
	name, broken, err := vfs.New(brokenDisk{fstest.MapFS{"db": {Data: make([]byte, 4096)}}})
	if err != nil {
		panic(err)
	}
	defer func() { _ = broken.Close() }()
	failures := sqliteFailures{
		full:   sqliteError("file::memory:", "PRAGMA max_page_count = 1", "CREATE TABLE t (n)"),
		broken: sqliteError("file:broken?vfs="+name, "SELECT * FROM t"),
	}
	return failures
})

// sqliteError returns the error with which one of these statements fails.
func sqliteError(dsn string, statements ...string) error {
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		panic(err)
	}
	defer func() { _ = db.Close() }()
	db.SetMaxOpenConns(1)
	for _, statement := range statements {
		if _, err := db.ExecContext(context.Background(), statement); err != nil {
			return err
		}
	}
	panic("SQLite takes " + strings.Join(statements, "; "))
}

// brokenDisk is one file with any name. SQLite can't read it, because it can't seek in it.
type brokenDisk struct{ fstest.MapFS }

// Open opens the file.
func (d brokenDisk) Open(string) (fs.File, error) {
	file, err := d.MapFS.Open("db")
	return struct{ fs.File }{file}, err
}
