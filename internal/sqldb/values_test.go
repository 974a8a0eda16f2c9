package sqldb_test

import (
	"bytes"
	"math"
	"testing"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
)

func TestValuesAndInText(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ got, want string }{
		{sqldb.SQLite.Values(9, 2, sqldb.Bytes, sqldb.Text), "($9, $10), ($11, $12)"},
		{sqldb.Cockroach.Values(1, 1, sqldb.Bytes), "(CAST($1 AS BYTEA))"},
		{
			sqldb.Postgres.Values(3, 2, sqldb.Text, sqldb.Int),
			"(CAST($3 AS TEXT), CAST($4 AS BIGINT)), (CAST($5 AS TEXT), CAST($6 AS BIGINT))",
		},
		{sqldb.In(1, 3), "($1, $2, $3)"},
		{sqldb.In(9, 2), "($9, $10)"},
		{sqldb.In(1, 0), "(NULL)"},
	} {
		if tt.got != tt.want {
			t.Errorf("got  %s\nwant %s", tt.got, tt.want)
		}
	}
}

// What a set-based statement needs: values of each type come through as they are, NULL too, and whatever the position
// and the order of its parameters.
func TestSetBasedStatements(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		db := open(t, url)
		blob := map[sqldb.Engine]string{sqldb.SQLite: "BLOB"}[db.Engine()]
		if blob == "" {
			blob = "BYTEA"
		}
		exec(t, db, "CREATE TABLE t (k TEXT PRIMARY KEY, n BIGINT, b "+blob+")")
		exec(t, db, "INSERT INTO t (k) VALUES ($1), ($2), ($3)", "1", "b", "other")

		binary := []byte{'1', '2', 0, 0xff, '\\', 'x'}
		values := db.Engine().Values(2, 2, sqldb.Text, sqldb.Int, sqldb.Bytes)
		rows, err := db.Writer().QueryContext(t.Context(),
			"UPDATE t SET n = v.column2, b = v.column3 FROM (VALUES "+values+") AS v"+
				" WHERE t.k = v.column1 AND t.k <> $1 RETURNING t.k, t.n, t.b",
			"other", "1", int64(math.MaxInt64), binary, "b", nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = rows.Close() }()
		seen := 0
		for rows.Next() {
			var k string
			var n *int64
			var b []byte
			if err := rows.Scan(&k, &n, &b); err != nil {
				t.Fatal(err)
			}
			seen++
			if k == "1" && (n == nil || *n != math.MaxInt64 || !bytes.Equal(b, binary)) || k == "b" && (n != nil || b != nil) {
				t.Errorf("row %q came back with %v, %q", k, n, b)
			}
		}
		if err := rows.Err(); err != nil || seen != 2 {
			t.Errorf("%d rows updated: %v", seen, err)
		}
		if n := number(t, db, "SELECT count(*) FROM t WHERE b = $1", binary); n != 1 {
			t.Errorf("%d rows have the same bytes", n)
		}
		if n := number(t, db, "SELECT count(*) FROM t WHERE k IN "+sqldb.In(1, 2), "b", "other"); n != 2 {
			t.Errorf("IN finds %d rows", n)
		}
		if n := number(t, db, "SELECT count(*) FROM t WHERE k IN "+sqldb.In(1, 0)); n != 0 {
			t.Errorf("an empty IN finds %d rows", n)
		}
	})
}

func TestMaxRows(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		db := open(t, url)
		exec(t, db, "CREATE TABLE t (k BIGINT PRIMARY KEY, n BIGINT)")
		var args []any
		for i := range sqldb.MaxRows {
			args = append(args, i, i+1)
		}
		values := db.Engine().Values(1, sqldb.MaxRows, sqldb.Int, sqldb.Int)
		exec(t, db, "INSERT INTO t (k, n) VALUES "+values+" ON CONFLICT DO NOTHING", args...)
		exec(t, db, "UPDATE t SET n = n + v.column2 FROM (VALUES "+values+") AS v WHERE t.k = v.column1", args...)
		if n := number(t, db, "SELECT count(*) FROM t WHERE n = 2 * (k + 1) AND (k, n / 2) IN (VALUES "+values+")", args...); n != sqldb.MaxRows {
			t.Errorf("%d rows are right, want %d", n, sqldb.MaxRows)
		}
	})
}

func TestMaxParams(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		args := make([]any, sqldb.MaxParams)
		for i := range args {
			args[i] = int64(i)
		}
		n := number(t, open(t, url), "SELECT count(*) FROM (SELECT 7 AS x) AS one WHERE x IN "+sqldb.In(1, len(args)), args...)
		if n != 1 {
			t.Errorf("got %d", n)
		}
	})
}
