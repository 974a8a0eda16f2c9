package sqldb_test

import (
	"errors"
	"testing"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestUnprepared: if a session has lost its prepared statements, or their answers have other types
// now, the error is transient, its outcome is known, and the next attempt has a new session.
func TestUnprepared(t *testing.T) {
	t.Parallel()
	for what, statement := range map[string]string{
		"another type": "ALTER TABLE t ALTER COLUMN n TYPE NUMERIC", "lost": "DEALLOCATE ALL",
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			db := open(t, testenv.Database(t, testenv.Postgres))
			db.Writer().SetMaxOpenConns(1)
			exec(t, db, "CREATE TABLE t (n BIGINT)")
			change := func() error {
				return db.InTx(t.Context(), func(tx *sqldb.Tx) error {
					var n int64
					if err := tx.QueryRow(t.Context(), "SELECT n FROM t UNION ALL SELECT 0").Scan(&n); err != nil {
						return err
					}
					return execTx(t.Context(), tx, "INSERT INTO t SELECT 1")
				})
			}
			if err := change(); err != nil {
				t.Fatal(err)
			}
			exec(t, db, statement)
			if err := change(); !sqldb.Transient(err) || errors.Is(err, sqldb.ErrUnknownOutcome) {
				t.Errorf("got %v", err)
			}
			if err := change(); err != nil {
				t.Errorf("the next attempt: %v", err)
			}
			if n := number(t, db, "SELECT count(*) FROM t"); n != 2 {
				t.Errorf("%d rows are committed", n)
			}
		})
	}
}
