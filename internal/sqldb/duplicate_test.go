package sqldb_test

import (
	"errors"
	"testing"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestDuplicate: the error of a row whose key another row has is told from all other errors,
// whichever of its keys it is.
func TestDuplicate(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		db := open(t, url)
		exec(t, db, "CREATE TABLE t (a BIGINT, b BIGINT, c TEXT NOT NULL UNIQUE, PRIMARY KEY (a, b))")
		exec(t, db, "INSERT INTO t VALUES (1, 2, 'c')")
		for statement, want := range map[string]bool{
			"INSERT INTO t VALUES (1, 2, 'd')":               true,
			"INSERT INTO t VALUES (2, 2, 'd'), (3, 3, 'c')":  true,
			"INSERT INTO t VALUES (9, 9, NULL)":              false,
			"INSERT INTO nowhere VALUES (1)":                 false,
			"INSERT INTO t VALUES (4, 4, 'e'), (5, 5, NULL)": false,
		} {
			_, err := db.Exec(t.Context(), statement)
			if sqldb.Duplicate(err) != want {
				t.Errorf("%s: %v", statement, err)
			}
		}
		if n := number(t, db, "SELECT count(*) FROM t"); n != 1 {
			t.Errorf("%d rows: a statement that failed has left some", n)
		}
		err := db.InTx(t.Context(), func(tx *sqldb.Tx) error {
			if _, err := tx.Exec(t.Context(), "INSERT INTO t VALUES (6, 6, 'f'), (7, 7, 'c')"); !sqldb.Duplicate(err) {
				t.Errorf("in a transaction: %v", err)
			}
			return nil
		})
		if n := number(t, db, "SELECT count(*) FROM t"); err == nil || n != 1 {
			t.Errorf("%d rows: a transaction with a statement that failed was committed: %v", n, err)
		}
		if sqldb.Duplicate(nil) || sqldb.Duplicate(errors.New("duplicate")) {
			t.Error("not every error is that of a duplicate")
		}
	})
}
