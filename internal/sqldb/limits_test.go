package sqldb_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
)

// openWithin is open with these limits of a statement, a lock and an answer.
func openWithin(t *testing.T, url string, statement, lock, answer time.Duration) *sqldb.DB {
	t.Helper()
	db, err := sqldb.OpenWithin(t.Context(), url, statement, lock, answer, discard())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// TestLimits: what hangs on a server ends there, with an answer, and the session goes on; work that
// may take long has no limit.
func TestLimits(t *testing.T) {
	t.Parallel()
	direct := testenv.Database(t, testenv.Postgres)
	for name, url := range map[string]string{"direct": direct, "pooled": testenv.Pooled(t, direct, 4)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const short, long = 100 * time.Millisecond, time.Minute
			for _, tt := range []struct {
				what, state string
				db          *sqldb.DB
			}{
				{"statement", "57014", openWithin(t, url, short, long, long)},
				{"lock", "55P03", openWithin(t, url, long, short, long)},
			} {
				table := tt.what + "_" + name
				exec(t, tt.db, "CREATE TABLE "+table+" (n BIGINT)")
				holder, err := tt.db.Unhurried().Writer().BeginTx(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := holder.ExecContext(t.Context(), "LOCK TABLE "+table+" IN ACCESS EXCLUSIVE MODE"); err != nil {
					t.Fatal(err)
				}
				insert := func(tx *sqldb.Tx) error { return execTx(t.Context(), tx, "INSERT INTO "+table+" VALUES (1)") }
				for _, err := range []error{
					tt.db.InTx(t.Context(), insert),
					tt.db.QueryRow(t.Context(), "SELECT n FROM "+table).Scan(new(int64)),
				} {
					var answer *pgconn.PgError
					if !errors.As(err, &answer) || answer.Code != tt.state || !sqldb.Transient(err) {
						t.Errorf("%s: got %v", tt.what, err)
					}
				}
				if _, err := holder.ExecContext(t.Context(), "SELECT pg_sleep(0.2)"); err != nil {
					t.Errorf("%s: work without limits: %v", tt.what, err)
				}
				if err := holder.Rollback(); err != nil {
					t.Error(err)
				}
				if err := tt.db.InTx(t.Context(), insert); err != nil {
					t.Errorf("%s: afterwards: %v", tt.what, err)
				}
			}
		})
	}
}

// TestNoAnswer: a silent server is given up, and later callers don't wait for it.
func TestNoAnswer(t *testing.T) {
	t.Parallel()
	proxy, url := through(t, testenv.Database(t, testenv.Postgres))
	db := openWithin(t, url, time.Minute, time.Minute, 300*time.Millisecond)
	exec(t, db, "CREATE TABLE t (n BIGINT)")
	exec(t, db, "DELETE FROM t") // the driver looks at a connection before it is used for the second time
	proxy.Stall()
	err := db.InTx(t.Context(), func(tx *sqldb.Tx) error { return execTx(t.Context(), tx, "INSERT INTO t VALUES (1)") })
	if err == nil || !strings.Contains(err.Error(), "does not answer") || !sqldb.Transient(err) {
		t.Errorf("got %v", err)
	}
	proxy.Restore()
	if err := db.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestReadOnly: while a database takes no writes nothing hangs, Ping says why, and what comes
// afterwards is written at once, also by sessions that were let in meanwhile.
func TestReadOnly(t *testing.T) {
	t.Parallel()
	for _, attrs := range []string{"", "&target_session_attrs=any"} {
		for _, pooled := range []bool{false, true} {
			url := testenv.Owned(t, nil)
			role := strings.SplitN(strings.TrimPrefix(url, "postgres://"), ":", 2)[0]
			through := url
			if pooled {
				through = testenv.Pooled(t, url, 2)
			}
			db := open(t, through+attrs)
			exec(t, db, "CREATE TABLE t (n BIGINT)")
			insert := func() error {
				return db.InTx(t.Context(), func(tx *sqldb.Tx) error {
					var p sqldb.Pipeline
					p.Exec("insert", "INSERT INTO t VALUES (1)", nil, nil)
					return tx.RunAtCommit(t.Context(), &p)
				})
			}
			const end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
			testenv.AsAdmin(t, url, "ALTER ROLE "+role+" SET default_transaction_read_only = on")
			testenv.AsAdmin(t, url, end)
			for range 2 {
				if err := insert(); err == nil || !sqldb.Transient(err) || errors.Is(err, sqldb.ErrUnknownOutcome) {
					t.Errorf("%s, %t: insert: %v", attrs, pooled, err)
				}
			}
			if err := db.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "takes no writes") {
				t.Errorf("%s, %t: ping: %v", attrs, pooled, err)
			}
			testenv.AsAdmin(t, url, "ALTER ROLE "+role+" RESET default_transaction_read_only")
			if pooled {
				testenv.AsAdmin(t, url, end) // the pooler's own sessions are not ours to replace
			}
			testenv.Eventually(t, time.Minute, "a change is written", insert)
		}
	}
}
