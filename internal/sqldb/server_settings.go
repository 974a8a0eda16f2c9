package sqldb

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// A server, a database or a role may have settings that change every session: the format of an
// answer, the schema in which a table is found, the wait for a lock. So each session is told the
// settings that this package relies on. Four of them go into the startup message, because every
// pooler keeps those for its clients. One statement sets the others:
//
//   - once for each connection, if it leads to the server itself;
//   - at the start of each transaction and for it alone, if a pooler may give the next transaction
//     another session. It goes in the same round trip as the BEGIN, see pooledConn.
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

// tell returns what sets the settings of a new connection.
func tell(text string) func(context.Context, *pgconn.PgConn) error {
	return func(ctx context.Context, conn *pgconn.PgConn) error {
		if _, err := conn.Exec(ctx, text).ReadAll(); err != nil {
			return fmt.Errorf("set what the session relies on: %w", err)
		}
		return nil
	}
}

// mustWrite refuses a new connection to a server that takes no writes. So of several hosts in a
// URL, the first one that takes writes is used.
func mustWrite(ctx context.Context, conn *pgconn.PgConn) error {
	if err := pgconn.ValidateConnectTargetSessionAttrsReadWrite(ctx, conn); err != nil {
		return fmt.Errorf("%w: %w", ErrReadOnly, err)
	}
	return nil
}
