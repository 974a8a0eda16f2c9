package sqldb

import (
	"database/sql/driver"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
)

func TestPositional(t *testing.T) {
	t.Parallel()
	abc := []driver.NamedValue{{Ordinal: 1, Value: "a"}, {Ordinal: 2, Value: "b"}, {Ordinal: 3, Value: "c"}}
	for _, tt := range []struct {
		query, want string
		args        []driver.Value
	}{
		{"SELECT $1, $2", "SELECT ?, ?", []driver.Value{"a", "b"}},
		{"SELECT $3,$1 , $3", "SELECT ?,? , ?", []driver.Value{"c", "a", "c"}},
		{"SELECT '$1', '''$1', \"$2\", [$3], `$1`, $2", "SELECT '$1', '''$1', \"$2\", [$3], `$1`, ?", []driver.Value{"b"}},
		{"SELECT $2 -- $1\n, $1 /* $3 ' */ - $3", "SELECT ? -- $1\n, ? /* $3 ' */ - ?", []driver.Value{"b", "a", "c"}},
		{"SELECT a$1, é$1, _$1$2 + $2-$1/$3", "SELECT a$1, é$1, _$1$2 + ?-?/?", []driver.Value{"b", "a", "c"}},
		{"SELECT '$1", "SELECT '$1", nil},
		{"SELECT 1 -- $1", "SELECT 1 -- $1", nil},
		{"", "", nil},
		// Not ours to understand: left alone.
		{"SELECT $1, ?", "SELECT $1, ?", []driver.Value{"a", "b", "c"}},
		{"SELECT $1, :name", "SELECT $1, :name", []driver.Value{"a", "b", "c"}},
		{"SELECT $4", "SELECT $4", []driver.Value{"a", "b", "c"}},
		{"SELECT $0", "SELECT $0", []driver.Value{"a", "b", "c"}},
		{"SELECT $01", "SELECT $01", []driver.Value{"a", "b", "c"}},
		{"SELECT $1a", "SELECT $1a", []driver.Value{"a", "b", "c"}},
		{"SELECT $1$2", "SELECT $1$2", []driver.Value{"a", "b", "c"}},
		{"SELECT $name", "SELECT $name", []driver.Value{"a", "b", "c"}},
	} {
		query, order := positional(tt.query, len(abc))
		args := reorder(abc, order)
		var values []driver.Value
		for i, arg := range args {
			if arg.Ordinal != i+1 {
				t.Errorf("%s: argument %d has ordinal %d", tt.query, i, arg.Ordinal)
			}
			values = append(values, arg.Value)
		}
		if query != tt.want || !slices.Equal(values, tt.args) {
			t.Errorf("%s\ngot  %s %v\nwant %s %v", tt.query, query, values, tt.want, tt.args)
		}
	}
}

// BenchmarkSQLiteParams shows whether the time grows with the number of parameters, and not with
// its square.
func BenchmarkSQLiteParams(b *testing.B) {
	db, err := Open(b.Context(), "sqlite:"+filepath.Join(b.TempDir(), "x.db"), slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = db.Close() })
	for _, rows := range []int{1, 256, MaxRows} {
		args := make([]any, 8*rows)
		for i := range args {
			args[i] = "value"
		}
		values := SQLite.values(1, rows, Text, Text, Text, Text, Text, Text, Text, Text)
		b.Run(strconv.Itoa(rows), func(b *testing.B) {
			for b.Loop() {
				var n int
				if err := db.Reader().QueryRow("SELECT count(*) FROM (VALUES "+values+")", args...).Scan(&n); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
