package sqldb

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	sqlite3 "modernc.org/sqlite/lib"
)

// Every connection to a SQLite file has a guard around it: it refuses all work after a lasting
// fault, recognizes faults in SQLite's answers, and looks around each COMMIT whether the file is
// still the one that the process has open. A commit to a file that was removed must not be answered
// with a receipt.

// guardedConnector makes connections that are guarded.
type guardedConnector struct {
	driver.Connector
	fault  *fault
	writes bool
}

// Connect opens a connection.
func (c guardedConnector) Connect(ctx context.Context) (driver.Conn, error) {
	if err := c.fault.get(); err != nil {
		return nil, err
	}
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, c.fault.judge(ctx, err)
	}
	inner, ok := conn.(*preparedConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("a connection is a %T", conn), conn.Close())
	}
	// A connection that is made later may be to a file that lies there now.
	if err := c.fault.look(ctx); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &guardedConn{preparedConn: inner, fault: c.fault, writes: c.writes}, nil
}

// guardedConn is a connection with its guard.
type guardedConn struct {
	*preparedConn
	fault  *fault
	writes bool
	dirty  bool // its transaction has changed something
}

// Unwrap lets the driver's own functions find its connection.
func (c *guardedConn) Unwrap() driver.Conn { return c.preparedConn }

// Ping asks whether the connection is usable.
func (c *guardedConn) Ping(ctx context.Context) error {
	if err := c.fault.get(); err != nil {
		return err
	}
	return c.fault.judge(ctx, c.preparedConn.Ping(ctx))
}

// ExecContext runs a statement.
func (c *guardedConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if err := c.fault.get(); err != nil {
		return nil, err
	}
	result, err := c.preparedConn.ExecContext(ctx, query, args)
	if err != nil {
		return nil, c.judge(ctx, err)
	}
	if n, err := result.RowsAffected(); err != nil || n > 0 {
		c.dirty = true
	}
	return result, nil
}

// QueryContext runs a query.
func (c *guardedConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if err := c.fault.get(); err != nil {
		return nil, err
	}
	rows, err := c.preparedConn.QueryContext(ctx, query, args)
	if err != nil {
		return nil, c.judge(ctx, err)
	}
	if !strings.HasPrefix(strings.TrimLeft(query, " \t\n"), "SELECT") {
		c.dirty = true
	}
	return &guardedRows{rows, func(err error) error { return c.judge(ctx, err) }}, nil
}

// guardedRows are rows whose errors are looked at.
type guardedRows struct {
	driver.Rows
	judge func(error) error
}

// Next reads a row.
func (r *guardedRows) Next(dest []driver.Value) error {
	err := r.Rows.Next(dest)
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return r.judge(err)
}

// BeginTx begins a transaction.
func (c *guardedConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if err := c.fault.get(); err != nil {
		return nil, err
	}
	began := time.Now()
	tx, err := c.preparedConn.BeginTx(ctx, opts)
	if c.writes { // all that it can wait for is the lock
		c.fault.waited(ctx, time.Since(began))
	}
	if err != nil {
		return nil, c.judge(ctx, err)
	}
	c.dirty = false
	return guardedTx{tx, c}, nil
}

// guardedTx is a transaction of a guardedConn.
type guardedTx struct {
	driver.Tx
	conn *guardedConn
}

// Commit commits. What went to a file that is not there any more is a fault, and no success.
func (t guardedTx) Commit() error {
	ctx := context.Background()
	c := t.conn
	if c.dirty && c.writes {
		if err := c.judge(ctx, c.stamp(ctx)); err != nil {
			return errors.Join(err, t.Rollback())
		}
	}
	if err := t.Tx.Commit(); err != nil {
		return c.judge(ctx, err)
	}
	if !c.dirty {
		return nil
	}
	c.fault.written()
	return c.fault.look(ctx)
}

// judge looks at an error, and keeps one by which nothing can be written, until something was.
func (c *guardedConn) judge(ctx context.Context, err error) error {
	if c.writes {
		c.fault.unwritten(err)
	}
	return c.fault.judge(ctx, err)
}

// judge returns an error, or the lasting fault that it is a sign of.
func (f *fault) judge(ctx context.Context, err error) error {
	code, ok := sqliteCode(err)
	if !ok {
		return err
	}
	switch code {
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return f.set(ctx, fmt.Errorf("%w: %w", ErrCorrupt, err))
	case sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PROTOCOL:
		if lasting := f.look(ctx); lasting != nil {
			return lasting
		}
	}
	return err
}

// unwritable says whether the error is that the file, or its disk, can't be written to now.
func unwritable(err error) bool {
	code, ok := sqliteCode(err)
	return ok && (code == sqlite3.SQLITE_FULL || code == sqlite3.SQLITE_IOERR || code == sqlite3.SQLITE_READONLY)
}
