package sqldb_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
)

func TestInTxCommitsOrRollsBack(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		db := open(t, url)
		exec(t, db, "CREATE TABLE t (n BIGINT PRIMARY KEY)")
		insert := func(ctx context.Context, n int, then func() error) error {
			return db.InTx(ctx, func(tx *sqldb.Tx) error {
				if err := execTx(ctx, tx, "INSERT INTO t VALUES ($1)", n); err != nil {
					return err
				}
				return then()
			})
		}
		if err := insert(t.Context(), 1, func() error { return nil }); err != nil {
			t.Errorf("commit: %v", err)
		}
		ours := errors.New("ours")
		if err := insert(t.Context(), 2, func() error { return ours }); !errors.Is(err, ours) {
			t.Errorf("an error of the function: %v", err)
		}
		if err := insert(t.Context(), 1, func() error { return nil }); err == nil || sqldb.Transient(err) {
			t.Errorf("a duplicate: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		err := insert(ctx, 3, func() error { cancel(); return nil })
		if !errors.Is(err, context.Canceled) || errors.Is(err, sqldb.ErrUnknownOutcome) {
			t.Errorf("a cancelled context: %v", err)
		}
		func() {
			defer func() {
				if r := recover(); r != "boom" {
					t.Errorf("the panic became %v", r)
				}
			}()
			_ = insert(t.Context(), 4, func() error { panic("boom") })
		}()
		if n := number(t, db, "SELECT count(*) FROM t"); n != 1 {
			t.Errorf("%d rows are there, want 1", n)
		}
		// No connection is lost to an unfinished transaction: SQLite's writer has but one.
		if err := insert(t.Context(), 5, func() error { return nil }); err != nil {
			t.Errorf("afterwards: %v", err)
		}
		if busy := db.Writer().Stats().InUse; busy != 0 {
			t.Errorf("%d connections are still in use", busy)
		}
	})
}

func TestInTxLosesNoIncrement(t *testing.T) {
	t.Parallel()
	testenv.EachEngine(t, func(t *testing.T, url string) {
		db := open(t, url)
		exec(t, db, "CREATE TABLE t (n BIGINT)")
		exec(t, db, "INSERT INTO t VALUES (0)")
		const rivals, each = 4, 10
		together(t, rivals, func() error {
			for range each {
				if err := increment(t.Context(), db, func() {}); err != nil {
					return err
				}
			}
			return nil
		})
		if n := number(t, db, "SELECT n FROM t"); n != rivals*each {
			t.Errorf("counted %d, want %d", n, rivals*each)
		}
	})
}

func increment(ctx context.Context, db *sqldb.DB, afterRead func()) error {
	return db.InTx(ctx, func(tx *sqldb.Tx) error {
		var n int64
		if err := tx.QueryRow(ctx, "SELECT n FROM t").Scan(&n); err != nil {
			return err
		}
		afterRead()
		return execTx(ctx, tx, "UPDATE t SET n = $1", n+1)
	})
}

// meeting lets two transactions continue only when both are there. Later runs of either one pass.
type meeting struct {
	both sync.WaitGroup
	runs atomic.Int64
}

func newMeeting() *meeting {
	m := &meeting{}
	m.both.Add(2)
	return m
}

func (m *meeting) arrive() {
	if m.runs.Add(1) <= 2 {
		m.both.Done()
	}
	m.both.Wait()
}

// Two transactions read the same row before either one writes it: the server fails one of them with
// 40001.
func TestInTxRunsTheLoserAgain(t *testing.T) {
	t.Parallel()
	for _, engine := range []string{testenv.Postgres, testenv.Cockroach} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			db := open(t, testenv.Database(t, engine))
			exec(t, db, "CREATE TABLE t (n BIGINT)")
			exec(t, db, "INSERT INTO t VALUES (0)")
			read := newMeeting()
			together(t, 2, func() error { return increment(t.Context(), db, read.arrive) })
			if n := number(t, db, "SELECT n FROM t"); n != 2 {
				t.Errorf("counted %d, want 2", n)
			}
			if runs := read.runs.Load(); runs < 3 {
				t.Errorf("%d runs: there was no conflict", runs)
			}
		})
	}
}

// Write skew: each of two transactions sees two on call, and takes itself off. Both have done all
// their work when the first one commits, so PostgreSQL can fail the second one only at its COMMIT.
// If InTx dropped that error, it would report a success with nothing saved.
func TestInTxReportsAndRetriesAFailedCommit(t *testing.T) {
	t.Parallel()
	for name, write := range lastWrites() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			checkWriteSkew(t, write)
		})
	}
}

// lastWrites are the ways in which a transaction's last statement can be run.
func lastWrites() map[string]writing {
	return map[string]writing{
		"before the COMMIT": func(ctx context.Context, _ *sqldb.DB, tx *sqldb.Tx, statement string, args ...any) error {
			return execTx(ctx, tx, statement, args...)
		},
		"with the COMMIT": func(ctx context.Context, db *sqldb.DB, tx *sqldb.Tx, statement string, args ...any) error {
			var p sqldb.Pipeline
			p.Exec("write", statement, args, nil)
			return tx.RunAtCommit(ctx, &p)
		},
	}
}

type writing func(ctx context.Context, db *sqldb.DB, tx *sqldb.Tx, statement string, args ...any) error

func checkWriteSkew(t *testing.T, write writing) {
	t.Helper()
	db := open(t, testenv.Database(t, testenv.Postgres))
	exec(t, db, "CREATE TABLE t (name TEXT PRIMARY KEY, on_call BIGINT)")
	exec(t, db, "INSERT INTO t VALUES ('a', 1), ('b', 1)")
	read, wrote := newMeeting(), newMeeting()
	leave := func(name string) error {
		return db.InTx(t.Context(), func(tx *sqldb.Tx) error {
			var n int64
			if err := tx.QueryRow(t.Context(), "SELECT sum(on_call) FROM t").Scan(&n); err != nil {
				return err
			}
			read.arrive()
			if n < 2 {
				return nil
			}
			if err := write(t.Context(), db, tx, "UPDATE t SET on_call = 0 WHERE name = $1", name); err != nil {
				return err
			}
			wrote.arrive()
			return nil
		})
	}
	names := make(chan string, 2)
	names <- "a"
	names <- "b"
	together(t, 2, func() error { return leave(<-names) })
	if n := number(t, db, "SELECT sum(on_call) FROM t"); n != 1 {
		t.Errorf("%d are on call, want 1", n)
	}
	if reads, writes := read.runs.Load(), wrote.runs.Load(); reads != 3 || writes != 2 {
		t.Errorf("%d runs and %d with all work done; the failure was not at COMMIT", reads, writes)
	}
}

// TestInTxIgnoredError: a function that ignores an error of the server, or of its own while it
// reads a row, commits nothing. InTx returns that error, and is sure of the outcome.
func TestInTxIgnoredError(t *testing.T) {
	t.Parallel()
	ours := errors.New("ours")
	check := func(t *testing.T, db *sqldb.DB) {
		t.Helper()
		exec(t, db, "CREATE TABLE t (n BIGINT PRIMARY KEY)")
		exec(t, db, "INSERT INTO t VALUES (1)")
		for what, tt := range map[string]struct {
			is      func(error) bool
			ignored func(p *sqldb.Pipeline)
		}{
			"the server's": {sqldb.Duplicate, func(p *sqldb.Pipeline) { p.Exec("", "INSERT INTO t VALUES (1)", nil, nil) }},
			"its own": {func(err error) bool { return errors.Is(err, ours) }, func(p *sqldb.Pipeline) {
				p.Query("", "SELECT n FROM t", nil, func(sqldb.Row) error { return ours })
			}},
		} {
			session := sessionOf(t, db)
			err := db.InTx(t.Context(), func(tx *sqldb.Tx) error {
				var p sqldb.Pipeline
				p.Exec("", "INSERT INTO t VALUES (2)", nil, nil)
				tt.ignored(&p)
				_ = tx.Run(t.Context(), &p)
				return nil
			})
			if !tt.is(err) || errors.Is(err, sqldb.ErrUnknownOutcome) || sqldb.Transient(err) {
				t.Errorf("%s: %v", what, err)
			}
			if n := number(t, db, "SELECT count(*) FROM t"); n != 1 {
				t.Errorf("%s: %d rows are there", what, n)
			}
			if sessionOf(t, db) != session {
				t.Errorf("%s: the session is given up: it was not rolled back", what)
			}
		}
	}
	testenv.EachEngine(t, func(t *testing.T, url string) { check(t, open(t, url)) })
	t.Run("taken for CockroachDB", func(t *testing.T) {
		t.Parallel()
		check(t, takenForCockroach(t, testenv.Database(t, testenv.Postgres)))
	})
}

// sessionOf returns which session with a server a query has; SQLite has none.
func sessionOf(t *testing.T, db *sqldb.DB) int64 {
	t.Helper()
	if db.Engine() == sqldb.SQLite {
		return 0
	}
	return number(t, db, "SELECT pg_backend_pid()")
}

// TestInTxCancelled: a transaction that can't be rolled back, because its context has ended, leaves
// no session behind that holds its locks.
func TestInTxCancelled(t *testing.T) {
	t.Parallel()
	url := testenv.Database(t, testenv.Postgres)
	db, other := open(t, url), open(t, url)
	exec(t, db, "CREATE TABLE t (n BIGINT)")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := db.InTx(ctx, func(tx *sqldb.Tx) error {
		err := execTx(ctx, tx, "INSERT INTO t VALUES (1)")
		cancel()
		return err
	})
	if !errors.Is(err, context.Canceled) || errors.Is(err, sqldb.ErrUnknownOutcome) {
		t.Errorf("got %v", err)
	}
	testenv.Eventually(t, time.Minute, "no transaction is open", func() error {
		const query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in transaction%'"
		if n := number(t, other, query); n != 0 {
			return fmt.Errorf("%d are", n)
		}
		return nil
	})
}

func TestInTxWaitsForABusySQLiteFile(t *testing.T) {
	t.Parallel()
	url := testenv.Database(t, testenv.SQLite)
	db, other := open(t, url), open(t, url)
	exec(t, db, "CREATE TABLE t (n BIGINT)")
	exec(t, db, "INSERT INTO t VALUES (0)")
	exec(t, db, "PRAGMA busy_timeout = 0") // else SQLite waits itself, for 10 s

	holder, err := other.Writer().BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(t.Context(), "UPDATE t SET n = 9"); !sqldb.Transient(err) {
		t.Fatalf("not SQLITE_BUSY: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := increment(ctx, db, func() {}); !errors.Is(err, context.DeadlineExceeded) || !sqldb.Transient(err) {
		t.Fatalf("while the file is locked: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- increment(t.Context(), db, func() {}) }()
	if err := holder.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := number(t, db, "SELECT n FROM t"); n != 1 {
		t.Errorf("counted %d, want 1", n)
	}
}

// The connection breaks while the server runs the COMMIT. The server finishes it all the same.
func TestInTxUnknownOutcome(t *testing.T) {
	t.Parallel()
	for name, write := range lastWrites() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			checkUnknownOutcome(t, write, func(url string) *sqldb.DB { return open(t, url) })
		})
		t.Run(name+", taken for CockroachDB", func(t *testing.T) {
			t.Parallel()
			checkUnknownOutcome(t, write, func(url string) *sqldb.DB { return takenForCockroach(t, url) })
		})
	}
}

func checkUnknownOutcome(t *testing.T, write writing, opened func(url string) *sqldb.DB) {
	t.Helper()
	url := testenv.Database(t, testenv.Postgres)
	direct := open(t, url)
	proxy, behind := through(t, url)
	db := opened(behind)

	exec(t, direct, "CREATE TABLE t (n BIGINT)")
	exec(t, direct, `CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS
		'BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END'`)
	exec(t, direct, `CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED
		FOR EACH ROW EXECUTE FUNCTION hold()`)
	holder, err := direct.Writer().BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := holder.ExecContext(t.Context(), "SELECT pg_advisory_xact_lock(1)"); err != nil {
		t.Fatal(err)
	}

	var runs atomic.Int64
	insert := func(n int) error {
		return db.InTx(t.Context(), func(tx *sqldb.Tx) error {
			runs.Add(1)
			return write(t.Context(), db, tx, "INSERT INTO t VALUES ($1)", n)
		})
	}
	done := make(chan error, 1)
	go func() { done <- insert(1) }()
	testenv.Eventually(t, time.Minute, "wait in COMMIT", func() error {
		if number(t, direct, "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database"+
			" WHERE NOT granted AND locktype = 'advisory' AND datname = current_database()") != 1 {
			return errors.New("nobody waits")
		}
		return nil
	})
	proxy.Cut()
	if err := <-done; !errors.Is(err, sqldb.ErrUnknownOutcome) || !sqldb.Transient(err) {
		t.Errorf("got %v", err)
	}
	if runs.Load() != 1 {
		t.Errorf("ran %d times", runs.Load())
	}
	if err := insert(2); err == nil || errors.Is(err, sqldb.ErrUnknownOutcome) || !sqldb.Transient(err) {
		t.Errorf("during the outage: %v", err)
	}
	if err := holder.Rollback(); err != nil {
		t.Fatal(err)
	}
	proxy.Restore()
	if err := insert(3); err != nil {
		t.Errorf("after it: %v", err)
	}
	testenv.Eventually(t, time.Minute, "the commit that nobody heard of", func() error {
		if number(t, direct, "SELECT count(*) FROM t WHERE n = 1") != 1 {
			return errors.New("not there")
		}
		return nil
	})
}
