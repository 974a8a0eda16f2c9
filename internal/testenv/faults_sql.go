package testenv

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing/fstest"

	"github.com/jackc/pgx/v5"
	"modernc.org/sqlite"
	"modernc.org/sqlite/vfs"
)

// Connector makes the connections of a driver pass through the faults; it is an argument for
// sqldb.Wrap. A step is a BEGIN, a statement, or a COMMIT. A step fails with an error that the
// driver itself returns:
//
//   - For a server, it is the error of a broken connection, before the statement is sent or while its
//     answer is on the way. The connection is lost, and so is a transaction that was not committed.
//   - For SQLite, it is the error of a full or broken disk. The connection stays. A COMMIT that fails
//     has rolled back, unless the fault says that it was done.
func (f *Faults) Connector(inner driver.Connector) driver.Connector {
	_, file := inner.Driver().(*sqlite.Driver)
	return faultyConnector{inner, f, file}
}

type faultyConnector struct {
	driver.Connector
	faults *Faults
	file   bool // SQLite, not a server
}

// Connect opens a connection. That is not a step, because the pool decides when to do it.
func (c faultyConnector) Connect(ctx context.Context) (driver.Conn, error) {
	if c.faults.Dead() {
		return nil, c.refused()
	}
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	inner, ok := conn.(sqlConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("the driver's %T has not all the methods expected", conn), conn.Close())
	}
	return &faultyConn{sqlConn: inner, connector: c}, nil
}

// refused is the answer to a program that is dead.
func (c faultyConnector) refused() error {
	if c.file {
		return sqliteErrors().broken
	}
	return &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
}

// sqlConn is what the connections of both drivers implement.
type sqlConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	driver.Pinger
	driver.SessionResetter
}

// batcher is what connections to a server implement too. It is sqldb.Batcher; sqldb's tests import
// this package, so this package does not import sqldb.
type batcher interface {
	Batch(ctx context.Context, batch *pgx.Batch, read func(int, pgx.BatchResults) error) (done int, err error)
}

// faultyConn is a connection. As database/sql guarantees, one goroutine at a time uses it.
type faultyConn struct {
	sqlConn
	connector faultyConnector
	broken    bool
}

// step counts an operation. If it returns an error, the operation fails with it: after it was done
// if isLost, and otherwise without it.
func (c *faultyConn) step(what string) (isLost bool, err error) {
	if c.broken {
		return false, driver.ErrBadConn
	}
	switch c.connector.faults.step(what) {
	case notDone:
		return false, c.failure(false)
	case lost:
		return true, c.failure(true)
	default:
		return false, nil
	}
}

// failure is the error of a step that fails. A step can fail undone in two ways; its number chooses
// one.
func (c *faultyConn) failure(done bool) error {
	odd := c.connector.faults.fault.Step%2 == 1
	switch {
	case c.connector.file && (done || odd):
		return sqliteErrors().broken
	case c.connector.file:
		return sqliteErrors().full
	case done:
		return fmt.Errorf("receive message failed: %w", io.ErrUnexpectedEOF)
	case odd:
		return driver.ErrBadConn // nothing was sent; outside a transaction, database/sql retries
	default:
		return fmt.Errorf("write failed: %w", &net.OpError{Op: "write", Net: "tcp", Err: syscall.ECONNRESET})
	}
}

// lose breaks the connection to a server, and so ends its transaction.
func (c *faultyConn) lose() {
	if !c.connector.file && !c.broken {
		c.broken = true
		_ = c.sqlConn.Close() // the error changes nothing
	}
}

// Close closes the connection.
func (c *faultyConn) Close() error {
	if c.broken {
		return nil
	}
	return c.sqlConn.Close()
}

// BeginTx begins a transaction.
func (c *faultyConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	isLost, fault := c.step("BEGIN")
	if fault != nil && !isLost {
		c.lose()
		return nil, fault
	}
	tx, err := c.sqlConn.BeginTx(ctx, opts)
	if err != nil {
		return nil, err
	}
	if isLost {
		_ = tx.Rollback()
		c.lose()
		return nil, fault
	}
	return &faultyTx{tx, c}, nil
}

// Batch sends statements together, each of which is a step. Those before the one that fails are
// done.
func (c *faultyConn) Batch(ctx context.Context, batch *pgx.Batch, read func(int, pgx.BatchResults) error) (done int, err error) {
	inner, ok := c.sqlConn.(batcher)
	if !ok {
		return 0, fmt.Errorf("the driver's %T sends no batches", c.sqlConn)
	}
	for i, q := range batch.QueuedQueries {
		isLost, fault := c.step(statement(q.SQL))
		if fault == nil {
			continue
		}
		before := batch.QueuedQueries[:i]
		if isLost {
			before = batch.QueuedQueries[:i+1]
		}
		if len(before) > 0 {
			if done, err := inner.Batch(ctx, &pgx.Batch{QueuedQueries: before}, read); err != nil {
				return done, err
			}
		}
		c.lose()
		return 0, fault
	}
	return inner.Batch(ctx, batch, read)
}

// ExecContext runs a statement. A ROLLBACK is not a step, see [faultyTx.Rollback].
func (c *faultyConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if query == "ROLLBACK" {
		if c.broken {
			return nil, driver.ErrBadConn
		}
		return c.sqlConn.ExecContext(ctx, query, args)
	}
	isLost, fault := c.step(statement(query))
	if fault != nil && !isLost {
		c.lose()
		return nil, fault
	}
	result, err := c.sqlConn.ExecContext(ctx, query, args)
	if err == nil && isLost {
		c.lose()
		return nil, fault
	}
	return result, err
}

// QueryContext runs a query. If the fault loses the answer, it does so after the first row.
func (c *faultyConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	isLost, fault := c.step(statement(query))
	if fault != nil && !isLost {
		c.lose()
		return nil, fault
	}
	rows, err := c.sqlConn.QueryContext(ctx, query, args)
	if err == nil && isLost {
		return &lostRows{Rows: rows, conn: c, fault: fault}, nil
	}
	return rows, err
}

// CheckNamedValue converts an argument as the driver does.
func (c *faultyConn) CheckNamedValue(v *driver.NamedValue) error {
	if checker, ok := c.sqlConn.(driver.NamedValueChecker); ok {
		return checker.CheckNamedValue(v)
	}
	return driver.ErrSkip
}

// ResetSession tells database/sql not to use a broken connection.
func (c *faultyConn) ResetSession(ctx context.Context) error {
	if c.broken {
		return driver.ErrBadConn
	}
	return c.sqlConn.ResetSession(ctx)
}

// IsValid tells database/sql not to keep a broken connection.
func (c *faultyConn) IsValid() bool {
	if c.broken {
		return false
	}
	inner, ok := c.sqlConn.(driver.Validator)
	return !ok || inner.IsValid()
}

// statement returns the name of a step: the first words of the statement.
func statement(query string) string {
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

// faultyTx is a transaction of a faultyConn.
type faultyTx struct {
	driver.Tx
	conn *faultyConn
}

// Commit commits.
func (t *faultyTx) Commit() error {
	isLost, fault := t.conn.step("COMMIT")
	switch {
	case fault == nil:
		return t.Tx.Commit()
	case t.conn.broken: // it broke before the COMMIT
		return fault
	case isLost:
		if err := t.Tx.Commit(); err != nil {
			return err
		}
	default:
		_ = t.Tx.Rollback() // as a server does when it loses its client, and as SQLite does
	}
	t.conn.lose()
	return fault
}

// Rollback rolls back. That is not a step: a server rolls back even if the client can't reach it,
// and SQLite does when the process ends.
func (t *faultyTx) Rollback() error {
	if t.conn.broken {
		return driver.ErrBadConn
	}
	return t.Tx.Rollback()
}

// lostRows is an answer of which only the first row arrives.
type lostRows struct {
	driver.Rows
	conn  *faultyConn
	fault error
	given bool
}

// Next returns the first row, and then the fault.
func (r *lostRows) Next(dest []driver.Value) error {
	if !r.given {
		r.given = true
		if err := r.Rows.Next(dest); err == nil {
			return nil
		}
	}
	return r.fault
}

// Close closes the rows, and breaks the connection.
func (r *lostRows) Close() error {
	err := r.Rows.Close()
	r.conn.lose()
	return err
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
