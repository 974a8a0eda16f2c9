package sqldb

import (
	"context"
	"database/sql/driver"
	"fmt"
	"strconv"
	"strings"
)

// SQLite takes $1 for the name of a parameter, and looks for it among all names that the statement had before: a
// statement with 2,000 numbered parameters costs 17 ms, with as many plain ? it costs 1 ms. So the statements that go
// to SQLite through here have their $1, $2 … replaced by ?, with the arguments in the order of their use.

// positionalConnector makes connections that do so.
type positionalConnector struct{ driver.Connector }

// Connect opens a connection.
func (c positionalConnector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	inner, ok := conn.(sqliteConn)
	if !ok {
		_ = conn.Close()
		return nil, fmt.Errorf("the SQLite driver's %T has not all the methods expected", conn)
	}
	return positionalConn{inner}, nil
}

// sqliteConn is what the driver's connections implement. All of it must be passed on: database/sql asks for each
// interface by itself, and does without if it isn't there.
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

type positionalConn struct{ sqliteConn }

// ExecContext runs a statement.
func (c positionalConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	query, args = positional(query, args)
	return c.sqliteConn.ExecContext(ctx, query, args)
}

// QueryContext runs a query.
func (c positionalConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	query, args = positional(query, args)
	return c.sqliteConn.QueryContext(ctx, query, args)
}

// Unwrap lets the driver's own functions find its connection.
func (c positionalConn) Unwrap() driver.Conn { return c.sqliteConn }

// positional rewrites $1, $2 … to ?. A statement that has other kinds of parameters too, or that it can't make sense of,
// is left to SQLite as it is.
func positional(query string, args []driver.NamedValue) (string, []driver.NamedValue) {
	var text strings.Builder
	text.Grow(len(query))
	used := make([]driver.NamedValue, 0, len(args))
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
			n, err := strconv.Atoi(query[i+1 : end])
			if err != nil || n < 1 || n > len(args) || args[n-1].Name != "" || query[i+1] == '0' ||
				end < len(query) && inName(query[end]) { // $01 and $1a are names
				return query, args
			}
			used = append(used, driver.NamedValue{Ordinal: len(used) + 1, Value: args[n-1].Value})
			text.WriteByte('?')
			i = end
		default: // ? : @
			return query, args
		}
	}
	return text.String(), used
}

// skip returns the end of the text from i on that has no parameter: up to a sign that may begin one, or the whole of a
// string, a quoted name or a comment. It returns i at such a sign.
func skip(query string, i int) int {
	rest := query[i:]
	switch c := rest[0]; {
	case c == '$' && i > 0 && inName(query[i-1]): // a$1 is a name
		return i + 1
	case c == '$' || c == '?' || c == ':' || c == '@':
		return i
	case c == '\'' || c == '"' || c == '`':
		return i + through(rest, 1, string(c)) // a doubled quote reads as two strings side by side
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

// through returns the index behind the first end in text from start on, or behind the text.
func through(text string, start int, end string) int {
	if i := strings.Index(text[start:], end); i >= 0 {
		return start + i + len(end)
	}
	return len(text)
}

func inName(c byte) bool {
	return c == '_' || c == '$' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}
