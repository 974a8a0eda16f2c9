package sqldb

import (
	"bytes"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestStuckLog: a log that can't be folded because of a reader is warned of once, again when it
// has doubled, and not when it is folded at last. The next commit gives its space back.
func TestStuckLog(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "test.db")
	db, err := Open(t.Context(), "sqlite:"+path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	var log bytes.Buffer
	c, err := newCheckpointer(t.Context(), newFault(path, slog.New(slog.NewTextHandler(&log, nil))))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.pool.Close() }()

	fill := func(pages int) {
		t.Helper()
		err := db.InTx(t.Context(), func(tx *Tx) error {
			_, err := tx.Exec(t.Context(), "INSERT INTO t VALUES (zeroblob($1 * 4096))", pages)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	warnings := func(looks, want int) {
		t.Helper()
		for range looks {
			if err := c.look(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if n := strings.Count(log.String(), "grows"); n != want {
			t.Fatalf("%d warnings, want %d: %s", n, want, &log)
		}
	}
	if _, err := db.writer.ExecContext(t.Context(), "CREATE TABLE t (page BLOB)"); err != nil {
		t.Fatal(err)
	}
	reader, err := db.reader.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if err := reader.QueryRowContext(t.Context(), "SELECT count(*) FROM t").Scan(&n); err != nil {
		t.Fatal(err)
	}
	fill(checkpointFrom + 100)
	warnings(stuckLooks, 0)
	warnings(5, 1)
	fill(checkpointFrom)
	warnings(1, 1)
	fill(3 * checkpointFrom)
	warnings(5, 2)
	grown := db.LogBytes()
	if err := reader.Rollback(); err != nil {
		t.Fatal(err)
	}
	warnings(5, 2)
	fill(1)
	if size := db.LogBytes(); grown <= logKept || size > logKept {
		t.Errorf("the log has grown to %d bytes, and has %d now", grown, size)
	}
}

// TestLongLock: a lock that another holds for long is warned of, once.
func TestLongLock(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "test.db")
	var log bytes.Buffer
	db, err := Open(t.Context(), "sqlite:"+path, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if _, err := db.writer.ExecContext(t.Context(), "PRAGMA busy_timeout = 50"); err != nil {
		t.Fatal(err)
	}
	db.fault.long = 20 * time.Millisecond
	other := openFileWriter(newFault(path, slog.New(slog.DiscardHandler)))
	defer func() { _ = other.Close() }()
	holder, err := other.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		err := db.plainTx(t.Context(), func(tx *Tx) error {
			_, err := tx.Exec(t.Context(), "SELECT 1")
			return err
		})
		if !conflict(err) {
			t.Fatalf("got %v", err)
		}
	}
	if err := holder.Rollback(); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(log.String(), "locked by another process"); n != 1 {
		t.Errorf("%d warnings, want 1: %s", n, &log)
	}
}
