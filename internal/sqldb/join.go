package sqldb

// CockroachDB plans by statistics, which come some minutes after a table has its rows. Until then it
// takes every table for a small one, and for a list of 300 rows or more it reads the table whole. So
// a query that joins the list of [Engine.Rows] with tables has these words for JOIN:
//
//	"SELECT n FROM (%s) AS v " + e.LookupJoin() + " t ON t.k = v.column1"
//
// With them CockroachDB looks each row up by an index, and joins in the order of the text. Where no
// index fits, it refuses the query. So what is on the right is a table itself. It has an index whose
// first columns are compared in the ON by =, each with a column on the left of the very same type.
// Next to each such query stands the index.

// LookupJoin is the engine's words for JOIN, where an index finds the rows of the table on the right.
func (e Engine) LookupJoin() string {
	if e == Cockroach {
		return "INNER LOOKUP JOIN"
	}
	return "JOIN" // PostgreSQL and SQLite find the index by themselves
}
