package sqldb

import (
	"iter"
	"strconv"
)

// MaxParams is the largest number of parameters that one statement may have on every engine. It is
// SQLite's limit.
const MaxParams = 32766

// MaxRows is the largest number of rows that [Engine.Rows] puts into a list; PostgreSQL gets arrays
// instead. SQLite nests the rows of a VALUES in a FROM, and its limit is a depth of 1,000.
const MaxRows = 900

// Type is the type of a column of rows.
type Type string

// The types, by their names in PostgreSQL and CockroachDB, and the Go types of their values. nil is
// NULL.
const (
	Text  Type = "TEXT"   // string
	Int   Type = "BIGINT" // int64
	Bytes Type = "BYTEA"  // []byte
)

// Rows are the rows of one set-based statement.
type Rows struct {
	Query string // returns the rows, with columns named column1, column2, …
	Args  []any  // of the parameters in Query
	Len   int    // the number of rows
}

// Rows turns the values of any number of rows, one row after the other, into a query for set-based
// statements. Query may stand where a query may stand, so one text serves all engines:
//
//	INSERT INTO t (k, n) Query ON CONFLICT DO NOTHING
//	UPDATE t SET n = v.column2 FROM (Query) AS v WHERE t.k = v.column1
//	SELECT k FROM t WHERE (k, n) IN (Query)
//
// The parameters are numbered from $from on; the statement's other parameters have lower numbers.
// The engine decides how many rows go into one statement, and the caller runs a statement for each
// Rows:
//
//   - PostgreSQL gets all rows, as an array for each column. The text is the same for any number of
//     rows, so it is quick to parse, and worth preparing.
//   - SQLite has no arrays. It gets lists of a few fixed lengths, so that the same texts come again
//     and are found prepared.
//   - CockroachDB gets lists of at most [MaxRows] rows.
func (e Engine) Rows(from int, columns []Type, values []any) iter.Seq[Rows] {
	return func(yield func(Rows) bool) {
		for left := values; len(left) > 0; {
			n := e.rowsAtOnce(len(left)/len(columns), (MaxParams-from+1)/len(columns))
			part := left[:n*len(columns)]
			left = left[len(part):]
			if !yield(e.rows(from, columns, part, n)) {
				return
			}
		}
	}
}

// rowsAtOnce is how many of n rows go into one statement.
func (e Engine) rowsAtOnce(n, atMost int) int {
	switch e {
	case Postgres:
		return n
	case SQLite:
		size := largestPart
		for size > min(n, atMost) && size > 1 {
			size /= eachPartLess
		}
		return size
	default:
		return min(n, atMost, MaxRows)
	}
}

// The numbers of rows that a statement of SQLite's has: 256, 64, 16, 4 or 1. Larger ones save
// nothing more.
const (
	largestPart  = 256
	eachPartLess = 4
)

func (e Engine) rows(from int, columns []Type, values []any, n int) Rows {
	if e == Postgres {
		return Rows{Query: unnest(from, columns), Args: arrays(columns, values), Len: n}
	}
	// CockroachDB has unnest, too. VALUES is known to work there.
	return Rows{Query: "VALUES " + e.values(from, n, columns...), Args: values, Len: n}
}

// unnest writes a query of the rows that arrays hold, one for each column: SELECT
// unnest($1::TEXT[]) AS column1, … In a FROM, PostgreSQL would put all rows together before it uses
// the first one, which takes three times as long.
func unnest(from int, columns []Type) string {
	text := []byte("SELECT ")
	for i, column := range columns {
		text = strconv.AppendInt(append(text, "unnest($"...), int64(from+i), 10)
		text = append(append(append(text, "::"...), column...), "[]) AS column"...)
		text = append(strconv.AppendInt(text, int64(i+1), 10), ", "...)
	}
	return string(text[:len(text)-len(", ")])
}

// arrays turns rows into an array for each column.
func arrays(columns []Type, values []any) []any {
	args := make([]any, len(columns))
	for i, column := range columns {
		switch column {
		case Text:
			args[i] = array[string](values[i:], len(columns))
		case Int:
			args[i] = array[int64](values[i:], len(columns))
		default:
			args[i] = arrayOfBytes(values[i:], len(columns))
		}
	}
	return args
}

// array takes one of every width values, as []T, or as []*T if one of them is NULL.
func array[T any](values []any, width int) any {
	list := make([]T, 0, len(values)/width+1)
	for i := 0; i < len(values); i += width {
		if values[i] == nil {
			return arrayOrNull[T](values, width)
		}
		list = append(list, values[i].(T))
	}
	return list
}

func arrayOrNull[T any](values []any, width int) []*T {
	list := make([]*T, 0, len(values)/width+1)
	for i := 0; i < len(values); i += width {
		var one *T
		if v, ok := values[i].(T); ok {
			one = &v
		}
		list = append(list, one)
	}
	return list
}

// arrayOfBytes is array for bytes, of which nil is NULL.
func arrayOfBytes(values []any, width int) [][]byte {
	list := make([][]byte, 0, len(values)/width+1)
	for i := 0; i < len(values); i += width {
		one, _ := values[i].([]byte)
		list = append(list, one)
	}
	return list
}

// values writes a list of rows, with numbered parameters from $from on:
//
//	Cockroach.values(1, 2, Text, Int) // (CAST($1 AS TEXT), CAST($2 AS BIGINT)), (CAST($3 AS TEXT), …
//	SQLite.values(1, 2, Text, Int)    // ($1, $2), ($3, $4)
//
// It stands after VALUES, as in
//
//	UPDATE t SET n = v.column2 FROM (VALUES …) AS v WHERE t.id = v.column1
//
// where nothing else gives the parameters a type. CockroachDB takes the type from each row, and
// refuses a NULL without one. In SQLite each value has its own type: a cast would take three times
// as long, and one to BYTEA, which SQLite doesn't know, would make a number of the bytes.
//
// There is at least one row and at most MaxRows, and at most MaxParams parameters in the statement.
func (e Engine) values(from, rows int, columns ...Type) string {
	text := make([]byte, 0, rows*(len(columns)*len("CAST($1234 AS BIGINT), ")+len("(), ")))
	for range rows {
		text = append(text, '(')
		for _, column := range columns {
			text = e.appendParam(text, from, column)
			text = append(text, ", "...)
			from++
		}
		text = append(text[:len(text)-len(", ")], "), "...)
	}
	return string(text[:len(text)-len(", ")])
}

func (e Engine) appendParam(text []byte, n int, column Type) []byte {
	if e == SQLite {
		return strconv.AppendInt(append(text, '$'), int64(n), 10)
	}
	text = strconv.AppendInt(append(text, "CAST($"...), int64(n), 10)
	text = append(text, " AS "...)
	text = append(text, column...)
	return append(text, ')')
}

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
