package sqldb_test

import (
	"context"
	"log/slog"
	"os"
	"testing"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m)) }

// openTables opens a database that has no tables of ours, and the function that Migrate makes.
func openTables(t testing.TB, url string) *sqldb.DB {
	t.Helper()
	db := open(t, url)
	if db.Engine() == sqldb.Postgres {
		exec(t, db, sqldb.MustChange)
	}
	return db
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func open(t testing.TB, url string) *sqldb.DB {
	t.Helper()
	db, err := sqldb.Open(t.Context(), url, discard())
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

func exec(t testing.TB, db *sqldb.DB, statement string, args ...any) {
	t.Helper()
	if _, err := db.Exec(t.Context(), statement, args...); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func number(t *testing.T, db *sqldb.DB, query string, args ...any) (n int64) {
	t.Helper()
	if err := db.QueryRow(t.Context(), query, args...).Scan(&n); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return n
}

func execTx(ctx context.Context, tx *sqldb.Tx, statement string, args ...any) error {
	_, err := tx.Exec(ctx, statement, args...)
	return err
}
