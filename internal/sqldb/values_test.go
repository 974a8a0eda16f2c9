package sqldb_test

import (
	"bytes"
	"math"
	"slices"
	"strconv"
	"testing"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
)

func TestRowsText(t *testing.T) {
	t.Parallel()
	two := []sqldb.Type{sqldb.Text, sqldb.Int}
	for _, tt := range []struct {
		engine sqldb.Engine
		want   string
	}{
		{sqldb.SQLite, "VALUES ($3, $4)"}, // and another statement for the second row
		{sqldb.Cockroach, "VALUES (CAST($3 AS TEXT), CAST($4 AS BIGINT)), (CAST($5 AS TEXT), CAST($6 AS BIGINT))"},
		{sqldb.Postgres, "SELECT unnest($3::TEXT[]) AS column1, unnest($4::BIGINT[]) AS column2"},
	} {
		for rows := range tt.engine.Rows(3, two, []any{"a", int64(1), "b", int64(2)}) {
			if rows.Query != tt.want {
				t.Errorf("got  %s\nwant %s", rows.Query, tt.want)
			}
		}
	}
}

// Every row comes, once and in its place, in statements that the engine accepts. SQLite sees only a
// few texts.
func TestRowsAreCutUp(t *testing.T) {
	t.Parallel()
	for _, engine := range []sqldb.Engine{sqldb.SQLite, sqldb.Postgres, sqldb.Cockroach} {
		texts := map[string]bool{}
		for n := range 1500 {
			values := make([]any, 0, 2*n)
			for i := range n {
				values = append(values, int64(i), strconv.Itoa(i))
			}
			var all []any
			for rows := range engine.Rows(1, []sqldb.Type{sqldb.Int, sqldb.Text}, values) {
				texts[rows.Query] = true
				if engine == sqldb.Postgres {
					all = append(all, values...)
				} else {
					all = append(all, rows.Args...)
				}
				if rows.Len > sqldb.MaxRows && engine != sqldb.Postgres || len(rows.Args) > sqldb.MaxParams {
					t.Fatalf("%s: %d rows, %d parameters", engine, rows.Len, len(rows.Args))
				}
			}
			if !slices.Equal(all, values) {
				t.Fatalf("%s: %d rows came otherwise", engine, n)
			}
		}
		if want := map[sqldb.Engine]int{sqldb.SQLite: 5, sqldb.Postgres: 1, sqldb.Cockroach: 900}[engine]; len(texts) != want {
			t.Errorf("%s: %d texts, want %d", engine, len(texts), want)
		}
	}
}

// What a set-based statement needs: values of each type come through unchanged, NULL too, whatever
// the position and the order of their parameters.
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
		values := []any{"1", int64(math.MaxInt64), binary, "b", nil, nil, "other", int64(0), nil}
		seen := 0
		for part := range db.Engine().Rows(2, []sqldb.Type{sqldb.Text, sqldb.Int, sqldb.Bytes}, values) {
			query := "UPDATE t SET n = v.column2, b = v.column3 FROM (" + part.Query + ") AS v" +
				" WHERE t.k = v.column1 AND t.k <> $1 RETURNING t.k, t.n, t.b"
			seen += eachRow(t, db, query, append([]any{"other"}, part.Args...), func(scan func(...any) error) {
				var k string
				var n *int64
				var b []byte
				if err := scan(&k, &n, &b); err != nil {
					t.Fatal(err)
				}
				if k == "1" && (n == nil || *n != math.MaxInt64 || !bytes.Equal(b, binary)) || k == "b" && (n != nil || b != nil) {
					t.Errorf("row %q came back with %v, %q", k, n, b)
				}
			})
		}
		if seen != 2 {
			t.Errorf("%d rows updated", seen)
		}
		if n := number(t, db, "SELECT count(*) FROM t WHERE b = $1", binary); n != 1 {
			t.Errorf("%d rows have the same bytes", n)
		}
		var found int64
		for part := range db.Engine().Rows(1, []sqldb.Type{sqldb.Text}, []any{"b", "other", "nobody"}) {
			found += number(t, db, "SELECT count(*) FROM t WHERE k IN ("+part.Query+")", part.Args...)
		}
		if found != 2 {
			t.Errorf("IN finds %d rows", found)
		}
	})
}

// Rows may be any number, and a text column that is NULL somewhere is an array like any other.
func TestManyRows(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		db := open(t, url)
		exec(t, db, "CREATE TABLE t (k BIGINT PRIMARY KEY, n BIGINT, name TEXT)")
		const many = 2 * sqldb.MaxRows
		var values []any
		for i := range int64(many) {
			values = append(values, i, i+1, nil)
		}
		values[2] = "zero"
		types := []sqldb.Type{sqldb.Int, sqldb.Int, sqldb.Text}
		var found int64
		for range 2 { // the second time the statements are prepared, and insert nothing
			for part := range db.Engine().Rows(1, types, values) {
				exec(t, db, "INSERT INTO t (k, n, name) "+part.Query+" ON CONFLICT DO NOTHING", part.Args...)
			}
		}
		for part := range db.Engine().Rows(1, types, values) {
			exec(t, db, "UPDATE t SET n = n + v.column2 FROM ("+part.Query+") AS v WHERE t.k = v.column1", part.Args...)
			found += number(t, db, `SELECT count(*) FROM t WHERE n = 2 * (k + 1) AND (k, n, COALESCE(name, '')) IN
				(SELECT column1, 2 * column2, COALESCE(column3, '') FROM (`+part.Query+") AS v)", part.Args...)
		}
		if found != many {
			t.Errorf("%d rows are right, want %d", found, many)
		}
	})
}

func eachRow(t *testing.T, db *sqldb.DB, query string, args []any, row func(scan func(...any) error)) (n int) {
	t.Helper()
	rows, err := db.Writer().QueryContext(t.Context(), query, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	for ; rows.Next(); n++ {
		row(rows.Scan)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return n
}
