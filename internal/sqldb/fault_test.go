package sqldb_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"omiappreg.org/keyrotation/internal/sqldb"
	"omiappreg.org/keyrotation/internal/testenv"
)

// openLogged opens a file, and returns what is logged.
func openLogged(t *testing.T, path string) (*sqldb.DB, *testenv.Log) {
	t.Helper()
	var log testenv.Log
	db, err := sqldb.Open(t.Context(), "sqlite:"+path, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db, &log
}

// inTx runs a statement in a transaction.
func inTx(t *testing.T, db *sqldb.DB, statement string) error {
	t.Helper()
	return db.InTx(t.Context(), func(tx *sqldb.Tx) error { return execTx(t.Context(), tx, statement) })
}

// faulty checks that nothing is done with the database any more, and that this was logged once.
func faulty(t *testing.T, db *sqldb.DB, log *testenv.Log, kind error) {
	t.Helper()
	var one int
	read := db.QueryRow(t.Context(), "SELECT 1").Scan(&one)
	for what, err := range map[string]error{
		"Fault": db.Fault(), "Ping": db.Ping(t.Context()), "InTx": inTx(t, db, "INSERT INTO t VALUES (2)"), "a query": read,
	} {
		if !errors.Is(err, kind) || !errors.Is(err, sqldb.ErrFault) || !sqldb.Transient(err) {
			t.Errorf("%s: got %v, want %v", what, err, kind)
		}
	}
	if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
		t.Errorf("%d errors are logged, want 1: %s", n, log)
	}
}

// TestReplacedFile: no commit goes to a file that is gone or has another's name, and a process that
// commits nothing notices too.
func TestReplacedFile(t *testing.T) {
	t.Parallel()
	for name, replace := range map[string]func(t *testing.T, path string){
		"removed": func(t *testing.T, path string) { t.Helper(); rename(t, path, path+".away") },
		"another": func(t *testing.T, path string) {
			t.Helper()
			write(t, path+".new", read(t, path))
			rename(t, path+".new", path)
		},
		"its log is removed":              func(t *testing.T, path string) { t.Helper(); rename(t, path+"-wal", path+".away") },
		"the index of its log is removed": func(t *testing.T, path string) { t.Helper(); rename(t, path+"-shm", path+".away") },
	} {
		for _, idle := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				path := filepath.Join(t.TempDir(), "test.db")
				db, log := openLogged(t, path)
				exec(t, db, "CREATE TABLE t (n BIGINT)")
				err := db.InTx(t.Context(), func(tx *sqldb.Tx) error {
					if !idle {
						replace(t, path)
					}
					return execTx(t.Context(), tx, "INSERT INTO t VALUES (1)")
				})
				if !idle && !errors.Is(err, sqldb.ErrReplaced) || idle && err != nil {
					t.Errorf("a commit: %v", err)
				}
				if idle {
					replace(t, path)
					testenv.Eventually(t, time.Minute, "the fault is noticed", func() error {
						if db.Fault() == nil || log.String() == "" {
							return errors.New("no fault, or it is not logged yet")
						}
						return nil
					})
				}
				faulty(t, db, log, sqldb.ErrReplaced)
				if _, err := os.Stat(path); name == "removed" && err == nil {
					t.Error("the file is made again")
				}
			})
		}
	}
}

// TestCorruptFile: after SQLite has once found the file malformed, nothing is committed to it.
func TestCorruptFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "test.db")
	db := open(t, "sqlite:"+path)
	exec(t, db, "CREATE TABLE t (n BIGINT)")
	exec(t, db, "WITH RECURSIVE i(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM i WHERE n < 5000) INSERT INTO t SELECT n FROM i")
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	content := read(t, path)
	copy(content[8192:], bytes.Repeat([]byte{0xa5}, len(content)-8192))
	write(t, path, content)

	db, log := openLogged(t, path)
	var sum int64
	if err := db.QueryRow(t.Context(), "SELECT sum(n) FROM t").Scan(&sum); !errors.Is(err, sqldb.ErrCorrupt) {
		t.Errorf("read %d: %v", sum, err)
	}
	faulty(t, db, log, sqldb.ErrCorrupt)
	if errors.Is(db.Fault(), sqldb.ErrReplaced) {
		t.Error("a restart is no remedy")
	}
}

// TestNoDatabase: a file that is no database, or malformed, is the answer to who opens it, and
// nothing to be waited for.
func TestNoDatabase(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	path := filepath.Join(t.TempDir(), "test.db")
	db := open(t, "sqlite:"+path)
	exec(t, db, "CREATE TABLE t (n BIGINT)")
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	content := read(t, path)
	for name, damaged := range map[string][]byte{
		"text": []byte(strings.Repeat("no database ", 100)), "schema": append(content[:100:100], make([]byte, len(content)-100)...),
	} {
		write(t, path, damaged)
		var log testenv.Log
		_, err := sqldb.Open(ctx, "sqlite:"+path, slog.New(slog.NewTextHandler(&log, nil)))
		if !errors.Is(err, sqldb.ErrURL) || log.String() != "" {
			t.Errorf("%s: %v; logged: %s", name, err, &log)
		}
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// TestPingUnwritable: a file that can't be written to is found by Ping after a write has failed,
// and only as long as that lasts. It is no lasting fault.
func TestPingUnwritable(t *testing.T) {
	t.Parallel()
	db := open(t, testenv.Database(t, testenv.SQLite))
	exec(t, db, "CREATE TABLE t (n BIGINT)")
	exec(t, db, "PRAGMA query_only = 1") // SQLite answers as for a disk that is mounted to be read
	if err := inTx(t, db, "INSERT INTO t VALUES (1)"); err == nil {
		t.Fatal("it is written to")
	}
	for range 2 {
		if err := db.Ping(t.Context()); err == nil || db.Fault() != nil {
			t.Errorf("ping: %v, a lasting fault: %v", err, db.Fault())
		}
	}
	exec(t, db, "PRAGMA query_only = 0")
	if err := db.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}
