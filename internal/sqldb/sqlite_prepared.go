package sqldb

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// preparedEach is how many statements a SQLite connection keeps prepared.
const preparedEach = 128

// SQLite spends more time on reading and planning a statement of some hundred rows than on running
// it. So each connection keeps the statements that it ran last, by their texts.

// keepPrepared returns a connection that keeps its statements prepared.
func keepPrepared(conn driver.Conn) (driver.Conn, error) {
	inner, ok := conn.(sqliteConn)
	if !ok {
		_ = conn.Close()
		return nil, fmt.Errorf("the SQLite driver's %T has not all the methods expected", conn)
	}
	kept, err := simplelru.NewLRU[string, *prepared](preparedEach, nil)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &preparedConn{sqliteConn: inner, kept: kept}, nil
}

// sqliteConn is what the driver's connections implement. A wrapper must pass on all of it, because
// database/sql looks for each interface, and does without those that are missing.
type sqliteConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	driver.Pinger
	driver.SessionResetter
	driver.Validator
}

// sqliteStmt is what the driver's statements implement.
type sqliteStmt interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

// preparedConn is a connection, used by one goroutine at a time as database/sql does it.
type preparedConn struct {
	sqliteConn
	kept *simplelru.LRU[string, *prepared] // by the texts of the statements
}

// prepared is a statement, and the order in which it takes its arguments.
type prepared struct {
	sqliteStmt
	order []int
	args  int  // the number of arguments it was prepared for
	busy  bool // in use
	alone bool // not kept, or not any more
}

// ExecContext runs a statement.
func (c *preparedConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	stmt, err := c.acquire(ctx, query, args)
	if err != nil {
		return nil, err
	}
	result, err := stmt.ExecContext(ctx, reorder(args, stmt.order))
	return result, errors.Join(err, c.release(stmt))
}

// QueryContext runs a query.
func (c *preparedConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	stmt, err := c.acquire(ctx, query, args)
	if err != nil {
		return nil, err
	}
	rows, err := stmt.QueryContext(ctx, reorder(args, stmt.order))
	if err != nil {
		return nil, errors.Join(err, c.release(stmt))
	}
	return &preparedRows{rows, func() error { return c.release(stmt) }}, nil
}

// acquire returns a statement for one use. release ends the use.
func (c *preparedConn) acquire(ctx context.Context, query string, args []driver.NamedValue) (*prepared, error) {
	old, ok := c.kept.Get(query)
	if ok && !old.busy && old.args == len(args) {
		old.busy = true
		return old, nil
	}
	text, order := query, []int(nil)
	if !named(args) {
		text, order = positional(text, len(args))
	}
	stmt, err := c.PrepareContext(ctx, text)
	if err != nil {
		return nil, err
	}
	inner, isStmt := stmt.(sqliteStmt)
	if !isStmt {
		return nil, errors.Join(fmt.Errorf("the SQLite driver's %T has not all the methods expected", stmt), stmt.Close())
	}
	one := &prepared{inner, order, len(args), true, ok && old.busy}
	if one.alone {
		return one, nil
	}
	if err := c.keep(query, one); err != nil {
		one.busy = false
		return nil, err
	}
	return one, nil
}

// keep keeps a statement for the next time. It replaces the one with the same text, or otherwise
// the least recently used one.
func (c *preparedConn) keep(query string, one *prepared) error {
	old, ok := c.kept.Peek(query)
	if !ok && c.kept.Len() == preparedEach {
		_, old, ok = c.kept.RemoveOldest()
	}
	c.kept.Add(query, one)
	if !ok {
		return nil
	}
	old.alone = true
	if old.busy {
		return nil
	}
	return old.Close()
}

// release ends the use of a statement.
func (c *preparedConn) release(one *prepared) error {
	one.busy = false
	if one.alone {
		return one.Close()
	}
	return nil
}

// Close closes the statements and the connection.
func (c *preparedConn) Close() error {
	var errs []error
	for _, stmt := range c.kept.Values() {
		errs = append(errs, stmt.Close())
	}
	c.kept.Purge()
	return errors.Join(append(errs, c.sqliteConn.Close())...)
}

// execOnce runs a statement on a preparedConn without keeping it: its text does not come again.
func execOnce(ctx context.Context, conn any, text string) error {
	c, ok := conn.(*preparedConn)
	if !ok {
		return fmt.Errorf("a connection to SQLite is a %T", conn)
	}
	_, err := c.sqliteConn.ExecContext(ctx, text, nil)
	return err
}

func named(args []driver.NamedValue) bool {
	for i := range args {
		if args[i].Name != "" {
			return true
		}
	}
	return false
}

// preparedRows release their statement when they are closed.
type preparedRows struct {
	driver.Rows
	release func() error
}

// Close closes the rows.
func (r *preparedRows) Close() error {
	release := r.release
	if release == nil {
		return nil
	}
	r.release = nil
	return errors.Join(r.Rows.Close(), release())
}
