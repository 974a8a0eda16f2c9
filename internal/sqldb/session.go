package sqldb

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// A server, a database or a role may have settings that change every session: the format of an
// answer, the schema in which a table is found, the wait for a lock. So each session is told the
// settings that this package relies on. Four of them go into the startup message, because every
// pooler keeps those for its clients. One statement sets the others:
//
//   - once for each connection, if it leads to the server itself;
//   - at the start of each transaction and for it alone, if a pooler may give the next transaction
//     another session. It goes in the same round trip as the BEGIN, see pooledSession.
//
// default_transaction_read_only is not among them. An operator closes a database to writers with
// it, so it is obeyed.

// limits say how long a session waits, and how long this process waits for its answer.
type limits struct {
	statement, lock, idleTx time.Duration // 0: for ever
	// answer is for a server that doesn't answer any more, and so ignores the other limits, too. A
	// COMMIT has no limit: a server that waits for its standby is configured to do so, and
	// cancelling the wait would commit without the standby.
	answer time.Duration
}

// usual are the limits of ordinary work, whose statements take milliseconds.
func usual() limits {
	return limits{statement: 30 * time.Second, lock: 10 * time.Second, idleTx: 30 * time.Second, answer: 45 * time.Second}
}

// unhurried are the limits of work that may take long. A machine that lost its power inside a
// transaction still must not hold its locks until the server's TCP gives it up, which takes hours.
func unhurried() limits { return limits{idleTx: usual().idleTx} }

// startupParameters are those that poolers, CockroachDB and every version of PostgreSQL accept.
func startupParameters() map[string]string {
	return map[string]string{"client_encoding": "UTF8", "DateStyle": "ISO, MDY", "TimeZone": "UTC", "standard_conforming_strings": "on"}
}

// setting is one that a session is told.
type setting struct {
	name, value string
	chosen      bool // by the URL
}

const searchPath = "search_path"

// settings returns the settings of a session of an engine.
func (l limits) settings(engine Engine) []setting {
	list := []setting{
		{name: searchPath, value: `"$user", public`}, {name: "bytea_output", value: "hex"},
		{name: "statement_timeout", value: inUnits(l.statement)}, {name: "lock_timeout", value: inUnits(l.lock)},
		{name: "idle_in_transaction_session_timeout", value: inUnits(l.idleTx)},
	}
	if engine == Cockroach {
		return append(list, setting{name: "default_transaction_isolation", value: "serializable"})
	}
	return slices.Concat(list, []setting{
		{name: "default_transaction_isolation", value: "read committed"}, {name: "default_transaction_deferrable", value: "off"},
		{name: "IntervalStyle", value: "postgres"}, {name: "array_nulls", value: "on"},
		{name: "idle_session_timeout", value: "0"}, {name: "transaction_timeout", value: "0"}, // of newer versions
	}, planByIndex())
}

// inUnits formats a duration as servers show it.
func inUnits(d time.Duration) string {
	switch {
	case d == 0:
		return "0"
	case d%time.Second == 0:
		return fmt.Sprintf("%ds", d/time.Second)
	}
	return fmt.Sprintf("%dms", d/time.Millisecond)
}

// planByIndex are settings of PostgreSQL that make it find rows by their index whatever their
// number. It keeps the plan of a prepared statement, and a plan that is made while a table is empty
// reads the whole table. PostgreSQL keeps that plan until the table is analyzed, when it may have
// millions of rows. A query that must read a whole table still does. PostgreSQL then estimates a
// high cost, which must not make it compile the plan (jit).
//
// Nor does it plan a statement again for the values at hand. With an array of one row, such a plan
// looks cheaper than the one that is kept, which is for ten rows and otherwise the same. So
// PostgreSQL would plan every time, which costs more than to run the statement.
func planByIndex() []setting {
	return []setting{
		{name: "enable_seqscan", value: "off"}, {name: "enable_hashjoin", value: "off"}, {name: "enable_mergejoin", value: "off"},
		{name: "jit", value: "off"}, {name: "plan_cache_mode", value: "force_generic_plan"},
	}
}

// urlMayChoose says for which settings the URL has the last word. The others decide how answers are
// read.
func urlMayChoose(name string) bool {
	return name != "bytea_output" && name != "array_nulls"
}

// chosen removes from a URL's parameters the settings that a statement sets, and returns them: a
// pooler would refuse them in the startup message.
func chosen(params map[string]string) map[string]string {
	of := map[string]string{}
	for _, s := range slices.Concat(usual().settings(Postgres), usual().settings(Cockroach)) {
		for name, value := range maps.All(params) {
			if strings.EqualFold(name, s.name) {
				of[s.name] = value
				delete(params, name)
			}
		}
	}
	return of
}

// wanted returns the settings of a session of an engine. chosen are those that the URL has chosen,
// and options is its parameter of that name, which goes to the server unchanged.
func (l limits) wanted(engine Engine, chosen map[string]string, options string) (list []setting) {
	for _, s := range l.settings(engine) {
		if urlMayChoose(s.name) {
			if strings.Contains(options, s.name+"=") {
				continue
			}
			if value, is := chosen[s.name]; is {
				s.value, s.chosen = value, true
			}
		}
		list = append(list, s)
	}
	return list
}

// told returns the statements that set these settings, for the transaction alone or for the
// session.
func told(engine Engine, settings []setting, forTransaction bool) string {
	rows := make([]string, 0, len(settings))
	for _, s := range settings {
		if engine == Cockroach {
			rows = append(rows, "SET "+s.name+" = "+s.sql())
		} else {
			rows = append(rows, fmt.Sprintf("(%s, %s)", literal(s.name), literal(s.value)))
		}
	}
	if engine == Cockroach {
		return strings.Join(rows, "; ")
	}
	// A setting that has its value needs no change, and one that this version lacks is skipped.
	return fmt.Sprintf(`SELECT count(set_config(column1, column2, %t)) FROM (VALUES %s) AS v
		WHERE current_setting(column1, true) IS NOT NULL AND current_setting(column1, true) <> column2`, forTransaction, strings.Join(rows, ", "))
}

// sql returns the value after SET. A list of schemas must not be a literal: that would be the name
// of one schema.
func (s setting) sql() string {
	if s.name == searchPath && !s.chosen {
		return s.value
	}
	return literal(s.value)
}

func literal(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// sessions are those of a pool. If one of them finds that its server takes no writes, or stops,
// then the others lead to the same server, and none of them is used again.
type sessions struct{ era atomic.Int64 }

// end has all sessions of an era replaced.
func (s *sessions) end(era int64) { s.era.CompareAndSwap(era, era+1) }

// sessionConnector makes sessions.
type sessionConnector struct {
	driver.Connector

	sessions *sessions
	limits   limits
	told     string // what each transaction is told, see settings; "": the session is
}

// Connect opens a connection.
func (c sessionConnector) Connect(ctx context.Context) (driver.Conn, error) {
	era := c.sessions.era.Load()
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	inner, ok := conn.(*stdlib.Conn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("the PostgreSQL driver's connection is a %T", conn), conn.Close())
	}
	one := &session{Conn: inner, all: c.sessions, era: era, answer: c.limits.answer}
	if c.told != "" {
		return &pooledSession{one, c.told}, nil
	}
	return one, nil
}

// session is one of them.
type session struct {
	*stdlib.Conn
	all    *sessions
	era    int64
	answer time.Duration // see limits
}

// IsValid implements [driver.Validator].
func (s *session) IsValid() bool { return s.era == s.all.era.Load() && !s.Conn.Conn().IsClosed() }

// ResetSession implements [driver.SessionResetter].
func (s *session) ResetSession(ctx context.Context) error {
	if s.era != s.all.era.Load() {
		return driver.ErrBadConn
	}
	within, cancel := context.WithTimeout(ctx, dialTimeout) // it sends an empty statement after an idle time
	defer cancel()
	err := s.Conn.ResetSession(within)
	if err != nil && ctx.Err() == nil {
		s.all.end(s.era)
	}
	return err
}

// BeginTx begins a transaction.
func (s *session) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	tx, err := s.Conn.BeginTx(ctx, opts)
	return tx, s.judge(ctx, err)
}

// ExecContext runs a statement.
func (s *session) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	ctx, cancel := s.within(ctx)
	defer cancel()
	result, err := s.Conn.ExecContext(ctx, query, args)
	return result, s.judge(ctx, err)
}

// QueryContext runs a query.
func (s *session) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	ctx, cancel := s.within(ctx)
	rows, err := s.Conn.QueryContext(ctx, query, args)
	if err != nil {
		defer cancel()
		return nil, s.judge(ctx, err)
	}
	return timedRows{rows, cancel}, nil
}

// timedRows are the rows of an answer that must come within a time.
type timedRows struct {
	driver.Rows
	done context.CancelFunc
}

// Close closes the rows.
func (r timedRows) Close() error {
	defer r.done()
	return r.Rows.Close()
}

// within returns a context that limits how long an answer may take.
func (s *session) within(ctx context.Context) (context.Context, context.CancelFunc) {
	if s.answer == 0 {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, s.answer, errNoAnswer)
}

// inTx says whether the server is in a transaction.
func (s *session) inTx() bool {
	const idle = 'I'
	return s.Conn.Conn().PgConn().TxStatus() != idle
}

// judge looks at the error of a statement. If the server takes no writes, stops or is gone, or if
// prepared statements are of no use any more, all sessions to it are replaced. judge never tries
// again: another server may lack what was read from this one.
func (s *session) judge(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		if cause := context.Cause(ctx); errors.Is(cause, errNoAnswer) {
			return fmt.Errorf("%w: %w", cause, err)
		}
	case elsewhere(err), s.Conn.Conn().IsClosed():
		s.all.end(s.era)
	}
	return err
}

// mustWrite refuses a new connection to a server that takes no writes. So of several hosts in a
// URL, the first one that takes writes is used.
func mustWrite(ctx context.Context, conn *pgconn.PgConn) error {
	if err := pgconn.ValidateConnectTargetSessionAttrsReadWrite(ctx, conn); err != nil {
		return fmt.Errorf("%w: %w", ErrReadOnly, err)
	}
	return nil
}

// tell returns what sets the settings of a new connection.
func tell(text string) func(context.Context, *pgconn.PgConn) error {
	return func(ctx context.Context, conn *pgconn.PgConn) error {
		if _, err := conn.Exec(ctx, text).ReadAll(); err != nil {
			return fmt.Errorf("set what the session relies on: %w", err)
		}
		return nil
	}
}

// unreplicated is the key of a note about a connection's COMMIT.
const unreplicated = "unreplicated"

// notice looks at a server's notices, for one that its wait for a standby was cancelled. The answer
// to the COMMIT is then that the transaction is committed, which is true on this server alone. The
// routine's name is the same in all languages.
func notice(conn *pgconn.PgConn, n *pgconn.Notice) {
	if n.Routine == "SyncRepWaitForLSN" {
		conn.CustomData()[unreplicated] = true
	}
}

// replicated returns [errUnreplicated] if the wait for a standby was cancelled since the last call.
func replicated(conn *pgx.Conn) error {
	data := conn.PgConn().CustomData()
	if _, is := data[unreplicated]; !is {
		return nil
	}
	delete(data, unreplicated)
	return errUnreplicated
}
