package sqldb

// By default, SQLite copies each page that a statement of many rows changes, so that it could undo
// this statement alone. [DB.InTx] rolls back the whole transaction after an error, so "OR FAIL"
// spares it the copies. Nothing is different on a server.

// Insert returns the engine's words for the INSERT of many rows in a transaction of [DB.InTx].
func (e Engine) Insert() string { return e.orFail("INSERT") }

// Update returns the engine's words for the UPDATE of many rows in a transaction of [DB.InTx].
func (e Engine) Update() string { return e.orFail("UPDATE") }

func (e Engine) orFail(verb string) string {
	if e == SQLite {
		return verb + " OR FAIL"
	}
	return verb
}

// CockroachDB plans by statistics, which it has some minutes after a table gets its rows. Until
// then it assumes that every table is small, and for a list of 300 rows or more it scans the whole
// table. So a query that joins the list of [Engine.Rows] with tables uses these words for JOIN:
//
//	"SELECT n FROM (%s) AS v " + e.LookupJoin() + " t ON t.k = v.column1"
//
// With them, CockroachDB looks up each row by an index, and joins in the order of the text. If no
// index fits, it refuses the query. So the right side is a table, with an index whose first columns
// the ON compares by =, each with a column of the same type on the left. A comment at each such
// query names the index.

// LookupJoin returns the engine's words for a JOIN that finds the rows of the right table by an
// index.
func (e Engine) LookupJoin() string {
	if e == Cockroach {
		return "INNER LOOKUP JOIN"
	}
	return "JOIN" // PostgreSQL and SQLite find the index by themselves
}
