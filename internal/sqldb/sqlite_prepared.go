package sqldb

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"strconv"
	"strings"

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

// SQLite takes $1 for the name of a parameter, and looks it up among all earlier names of the
// statement: a statement with 2,000 numbered parameters costs 17 ms, and one with as many plain ?
// costs 1 ms. So a connection replaces $1, $2 … by ? when it prepares a statement, and passes the
// arguments in the order of their use.

// positional replaces $1, $2 … by ?, and returns which of n arguments each ? takes, counted from 0.
// A nil order means that the arguments are in order. A statement that has other kinds of
// parameters, or that positional doesn't understand, stays as it is.
func positional(query string, n int) (string, []int) {
	var text strings.Builder
	text.Grow(len(query))
	order := make([]int, 0, n)
	inOrder := true
	for i := 0; i < len(query); {
		switch end := skip(query, i); {
		case end > i:
			text.WriteString(query[i:end])
			i = end
		case query[i] == '$':
			end := i + 1
			for end < len(query) && query[end] >= '0' && query[end] <= '9' {
				end++
			}
			number, err := strconv.Atoi(query[i+1 : end])
			if err != nil || number < 1 || number > n || query[i+1] == '0' ||
				end < len(query) && inName(query[end]) { // $01 and $1a are names
				return query, nil
			}
			inOrder = inOrder && number == len(order)+1
			order = append(order, number-1)
			text.WriteByte('?')
			i = end
		default: // ? : @
			return query, nil
		}
	}
	if inOrder && len(order) == n {
		order = nil
	}
	return text.String(), order
}

// reorder returns the arguments in the order of their use.
func reorder(args []driver.NamedValue, order []int) []driver.NamedValue {
	if order == nil {
		return args
	}
	used := make([]driver.NamedValue, 0, len(order))
	for i, n := range order {
		used = append(used, driver.NamedValue{Ordinal: i + 1, Value: args[n].Value})
	}
	return used
}

// skip returns the end of the text from i on that has no parameter. The text ends before a
// character that may begin one, or after a string, a quoted name or a comment. If there is such a
// character at i, skip returns i.
func skip(query string, i int) int {
	rest := query[i:]
	switch c := rest[0]; {
	case c == '$' && i > 0 && inName(query[i-1]): // a$1 is a name
		return i + 1
	case c == '$' || c == '?' || c == ':' || c == '@':
		return i
	case c == '\'' || c == '"' || c == '`':
		return i + through(rest, 1, string(c)) // a doubled quote reads as two adjacent strings
	case c == '[':
		return i + through(rest, 1, "]")
	case strings.HasPrefix(rest, "--"):
		return i + through(rest, 2, "\n")
	case strings.HasPrefix(rest, "/*"):
		return i + through(rest, 2, "*/")
	}
	if n := strings.IndexAny(rest[1:], "$?:@'\"`[-/"); n >= 0 {
		return i + 1 + n
	}
	return len(query)
}

// through returns the index after the first end in text from start on, or after the text.
func through(text string, start int, end string) int {
	if i := strings.Index(text[start:], end); i >= 0 {
		return start + i + len(end)
	}
	return len(text)
}

func inName(c byte) bool {
	return c == '_' || c == '$' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}
