package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
)

func openTest(t *testing.T) *DB {
	t.Helper()
	db, err := Open(t.Context(), "sqlite:"+filepath.Join(t.TempDir(), "x.db"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// kept returns how many statements the writer's connection keeps, after run used it.
func kept(t *testing.T, db *DB) (n int) {
	t.Helper()
	conn, err := db.writer.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	err = conn.Raw(func(driver any) error {
		prepared, ok := driver.(*preparedConn)
		if !ok {
			return fmt.Errorf("it is a %T", driver)
		}
		n = prepared.kept.Len()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestPreparedInUse: if a text runs while its rows are still being read, it gets a statement of its
// own, and one of the two is kept.
func TestPreparedInUse(t *testing.T) {
	t.Parallel()
	db := openTest(t)
	empty := func(tx *Tx) error { return tx.QueryRow(t.Context(), "SELECT 0").Scan(new(int)) }
	if err := db.InTx(t.Context(), empty); err != nil { // its BEGIN and COMMIT are kept
		t.Fatal(err)
	}
	before := kept(t, db)
	err := db.InTx(t.Context(), func(tx *Tx) error { return countDown(t.Context(), tx, 5) })
	if err != nil {
		t.Fatal(err)
	}
	if n := kept(t, db) - before; n != 1 {
		t.Errorf("%d statements are kept, want 1", n)
	}
}

// countDown runs one statement inside itself.
func countDown(ctx context.Context, tx *Tx, n int) error {
	if n == 0 {
		return nil
	}
	want := []int{n, -1}
	var p Pipeline
	p.Query("", "SELECT $2 - 0 UNION ALL SELECT $1", []any{-1, n}, func(row Row) error {
		var got int
		if err := row.Scan(&got); err != nil || len(want) == 0 || got != want[0] {
			return fmt.Errorf("got %d, want %d: %w", got, want, err)
		}
		want = want[1:]
		return countDown(ctx, tx, n-1)
	})
	if err := tx.Run(ctx, &p); err != nil || len(want) > 0 {
		return errors.Join(fmt.Errorf("%d rows are lacking", len(want)), err)
	}
	return nil
}

// TestPreparedSchemaChange: a statement that is kept sees the table as it is now, and doesn't keep
// the table from being changed.
func TestPreparedSchemaChange(t *testing.T) {
	t.Parallel()
	db := openTest(t)
	for i, change := range []string{
		"CREATE TABLE t (a)", "ALTER TABLE t ADD COLUMN b", "ALTER TABLE t ADD COLUMN c DEFAULT 7", "DROP TABLE t", "CREATE TABLE t (x, y)",
	} {
		if _, err := db.writer.ExecContext(t.Context(), change); err != nil {
			t.Fatal(err)
		}
		for _, pool := range []*sql.DB{db.writer, db.reader} {
			if i == 3 {
				if _, err := columns(t.Context(), pool); err == nil {
					t.Error("the table is gone and found")
				}
				continue
			}
			want := []int{1, 2, 3, 0, 2}[i]
			if n, err := columns(t.Context(), pool); err != nil || n != want {
				t.Errorf("after %s: %d columns, want %d: %v", change, n, want, err)
			}
		}
	}
}

func columns(ctx context.Context, pool *sql.DB) (int, error) {
	rows, err := pool.QueryContext(ctx, "SELECT * FROM t")
	if err != nil {
		return 0, err
	}
	defer func() { _ = rows.Close() }()
	names, err := rows.Columns()
	return len(names), errors.Join(err, rows.Err())
}

// TestPreparedLimit: a connection keeps a limited number of statements, and drops the least
// recently used one.
func TestPreparedLimit(t *testing.T) {
	t.Parallel()
	db := openTest(t)
	for i := range 2 * preparedEach {
		var n int
		if err := db.writer.QueryRowContext(t.Context(), fmt.Sprintf("SELECT %d + $1", i), 1).Scan(&n); err != nil || n != i+1 {
			t.Fatalf("got %d: %v", n, err)
		}
	}
	if n := kept(t, db); n != preparedEach {
		t.Errorf("%d statements are kept, want %d", n, preparedEach)
	}
}

// TestPreparedAfterFailure: a statement that failed, or whose context ended while its rows were
// being read, works like a new one.
func TestPreparedAfterFailure(t *testing.T) {
	t.Parallel()
	db := openTest(t)
	if _, err := db.writer.ExecContext(t.Context(), "CREATE TABLE t (n BIGINT PRIMARY KEY, s TEXT)"); err != nil {
		t.Fatal(err)
	}
	const insert, all = "INSERT INTO t (s, n) VALUES ($2, $1)", "SELECT s FROM t WHERE s <> $1 ORDER BY n"
	for i := range 100 {
		for try := range 2 {
			_, err := db.writer.ExecContext(t.Context(), insert, i, fmt.Sprintf("text %d", i))
			if Duplicate(err) != (try == 1) || try == 0 && err != nil {
				t.Fatal(err)
			}
		}
		left, cancel := context.WithCancel(t.Context())
		err := db.InTx(left, func(tx *Tx) error { // the one connection of the writer's
			if _, err := tx.Exec(left, insert, 1000+i, "rolled back"); err != nil {
				return err
			}
			var p Pipeline
			p.Query("", all, []any{""}, func(Row) error {
				cancel()
				return left.Err()
			})
			return tx.Run(left, &p)
		})
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		var last string
		if err := db.writer.QueryRowContext(t.Context(), all+" LIMIT 1 OFFSET $2", "text 0", max(0, i-1)).Scan(&last); i > 0 &&
			(err != nil || last != fmt.Sprintf("text %d", i)) {
			t.Fatalf("the last of %d is %q: %v", i, last, err)
		}
		if n, err := columns(t.Context(), db.writer); err != nil || n != 2 {
			t.Fatal(n, err)
		}
	}
}
