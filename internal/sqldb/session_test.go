package sqldb_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
)

// TestHostileSettings: what a role is told changes nothing of what a session writes and reads, in
// whatever mode, and behind a pooler.
func TestHostileSettings(t *testing.T) {
	t.Parallel()
	for name, url := range testenv.HostileURLs(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := open(t, url)
			if err := db.Migrate(t.Context(), sqldb.Registry, schemas()[sqldb.Registry]); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				checkNulls(t, db)
			}
			exec(t, db, "CREATE TABLE t (k TEXT, b BYTEA, at TIMESTAMPTZ)")
			const text = `\'a' \\ "ö" ` + "\n"
			moment := time.Unix(1_705_412_600, 0)
			err := db.InTx(t.Context(), func(tx *sqldb.Tx) error {
				if err := execTx(t.Context(), tx, "INSERT INTO t VALUES ($1, $2, $3)", text, []byte(text), moment); err != nil {
					return err
				}
				return execTx(t.Context(), tx, "SELECT pg_sleep(0.4)") // longer than the role's statement_timeout
			})
			if err != nil {
				t.Fatal(err)
			}
			read := func(row sqldb.Row) {
				var gotText string
				var gotBytes []byte
				var at time.Time
				err := row.Scan(&gotText, &gotBytes, &at)
				if err != nil || gotText != text || !bytes.Equal(gotBytes, []byte(text)) || !at.Equal(moment) {
					t.Errorf("read %q, %q, %s: %v", gotText, gotBytes, at, err)
				}
			}
			const query = "SELECT k, b, at FROM t WHERE k = $1"
			read(db.QueryRow(t.Context(), query, text))
			read(db.Unhurried().QueryRow(t.Context(), query, text))
			if err := db.InTx(t.Context(), func(tx *sqldb.Tx) error { read(tx.QueryRow(t.Context(), query, text)); return nil }); err != nil {
				t.Error(err)
			}
			if err := db.Ping(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestPoolerHidesTheSchema: what is prepared before a transaction is told its schema would look for
// its tables in another one. That is refused, with what to do; the URL's own schema counts, also
// where the pooler takes no such parameter.
func TestPoolerHidesTheSchema(t *testing.T) {
	t.Parallel()
	direct := testenv.Owned(t, map[string]string{"search_path": "elsewhere"})
	pooled := testenv.Pooled(t, direct, 2)
	_, err := sqldb.Open(t.Context(), pooled+"&default_query_exec_mode=cache_describe", discard())
	if !errors.Is(err, sqldb.ErrURL) || !strings.Contains(err.Error(), "ALTER ROLE") {
		t.Errorf("got %v", err)
	}
	testenv.AsAdmin(t, direct, "CREATE SCHEMA ours; CREATE TABLE ours.t (n BIGINT); INSERT INTO ours.t VALUES (7); GRANT ALL ON SCHEMA ours TO PUBLIC; GRANT ALL ON ours.t TO PUBLIC")
	for _, url := range []string{direct, pooled} {
		db := open(t, url+"&search_path=ours")
		if n := number(t, db, "SELECT n FROM t"); n != 7 {
			t.Errorf("read %d", n)
		}
		exec(t, db, "UPDATE t SET n = n")
	}
}
