package sqldb

import "strconv"

// MaxParams is the largest number of parameters that one statement may have with every engine: SQLite's limit. A batch
// that needs more goes out in several statements.
const MaxParams = 32766

// Type is the type of a column in [Engine.Values].
type Type string

// The types, as PostgreSQL and CockroachDB name them.
const (
	Text  Type = "TEXT"
	Int   Type = "BIGINT"
	Bytes Type = "BYTEA"
)

// MaxRows is the largest number of rows that [Engine.Values] may write for every engine. SQLite nests the rows of a
// VALUES in a FROM, and stops at a depth of 1,000.
const MaxRows = 900

// Values writes a list of rows for a set-based statement, with numbered parameters from $from on:
//
//	Postgres.Values(1, 2, Text, Int)  // (CAST($1 AS TEXT), CAST($2 AS BIGINT)), (CAST($3 AS TEXT), CAST($4 AS BIGINT))
//	SQLite.Values(1, 2, Text, Int)    // ($1, $2), ($3, $4)
//
// It stands after VALUES, as in
//
//	UPDATE t SET n = v.column2 FROM (VALUES …) AS v WHERE t.id = v.column1
//
// where nothing else gives the parameters a type: PostgreSQL takes it from the first row, CockroachDB from each, and
// both refuse a NULL without it. In SQLite a type is the value's own; a cast would cost three times the statement, and
// one to BYTEA, which it doesn't know, would make a number of the bytes.
//
// There is at least one row and at most MaxRows, and at most MaxParams parameters in the whole statement.
func (e Engine) Values(from, rows int, columns ...Type) string {
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

// In writes the right side of an IN with n parameters from $from on: ($3, $4, $5). Without any it is (NULL), to which
// nothing is equal, since the empty list is no SQL.
func In(from, n int) string {
	if n == 0 {
		return "(NULL)"
	}
	text := []byte{'('}
	for i := range n {
		text = append(text, '$')
		text = strconv.AppendInt(text, int64(from+i), 10)
		text = append(text, ", "...)
	}
	return string(text[:len(text)-len(", ")]) + ")"
}
