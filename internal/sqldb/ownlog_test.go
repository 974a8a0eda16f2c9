package sqldb_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"omiappreg.org/keyrotation/internal/sqldb"
)

// image is a database file and its log, as a crash leaves them, or without a log, as a backup is.
type image struct{ file, log []byte }

// crashed returns what a process would leave behind if it were killed now.
func crashed(t *testing.T, path string) image {
	t.Helper()
	return image{read(t, path), read(t, path+"-wal")}
}

// history is a database at several times.
type history struct {
	early, backup image // of the run before the last; at its end
	begun, later  image // in the last run: backups between its commits
	end, folded   image // a crash at its end; after a checkpoint
	unstamped     image // a crash of a process that wrote without stamps
}

// record makes a history in which pages are changed and none is added: a mix of them looks sound.
func record(t *testing.T, path string) (h history) {
	t.Helper()
	db := open(t, "sqlite:"+path)
	exec(t, db, "CREATE TABLE t (n BIGINT)")
	exec(t, db, "INSERT INTO t VALUES (0)")
	exec(t, db, "CREATE TABLE never_changed (n BIGINT)")
	add := func() {
		t.Helper()
		if err := inTx(t, db, "UPDATE t SET n = n + 1"); err != nil {
			t.Fatal(err)
		}
	}
	backup := func() image {
		t.Helper()
		to := filepath.Join(t.TempDir(), "backup.db")
		exec(t, db, "VACUUM INTO '"+to+"'")
		return image{file: read(t, to)}
	}
	again := func() {
		t.Helper()
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		db = open(t, "sqlite:"+path)
	}
	add()
	h.early = backup()
	add()
	again()
	h.backup = image{file: read(t, path)}
	add()
	h.begun = backup()
	add()
	h.later = backup()
	add()
	h.end = crashed(t, path)
	exec(t, db, "PRAGMA wal_checkpoint(PASSIVE)")
	h.folded = crashed(t, path)
	again()
	exec(t, db, "UPDATE t SET n = n + 1")
	h.unstamped = crashed(t, path)
	return h
}

// TestOwnLog: after a crash, a log is replayed into the database that it is of, and into no other.
// What is refused stays as it is.
func TestOwnLog(t *testing.T) {
	t.Parallel()
	h := record(t, filepath.Join(t.TempDir(), "test.db"))
	other := record(t, filepath.Join(t.TempDir(), "other.db"))
	half := h.end.log[:len(h.end.log)-100]
	for name, tt := range map[string]struct {
		file, log []byte
		want      int64 // 0: refused
	}{
		"a crash":                               {h.end.file, h.end.log, 5},
		"a crash while the log was written":     {h.end.file, half, 4},
		"a crash after a checkpoint":            {h.folded.file, h.folded.log, 5},
		"without stamps":                        {h.unstamped.file, h.unstamped.log, 6},
		"a clean stop":                          {h.backup.file, nil, 2},
		"a log of which nothing was written":    {h.early.file, []byte{}, 1},
		"a backup at the log's beginning":       {h.backup.file, h.end.log, 5},
		"a copy of VACUUM of the log's time":    {h.begun.file, h.end.log, 0},
		"a copy of .backup of the log's time":   {backedUp(h.begun.file), h.end.log, 5},
		"an older backup":                       {h.early.file, h.end.log, 0},
		"an older backup, after a checkpoint":   {h.early.file, h.folded.log, 0},
		"a newer backup":                        {h.folded.file, half, 0},
		"another database":                      {other.backup.file, h.end.log, 0},
		"another database that is not stamped":  {unstamped(other.backup.file), h.end.log, 0},
		"a malformed mix, and nothing is known": {malformed(h.unstamped.file), h.unstamped.log, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "test.db")
			write(t, path, tt.file)
			if tt.log != nil {
				write(t, path+"-wal", tt.log)
			}
			db, err := sqldb.Open(t.Context(), "sqlite:"+path, discard())
			if tt.want == 0 {
				if !errors.Is(err, sqldb.ErrURL) {
					t.Fatalf("got %v", err)
				}
				if !bytes.Equal(read(t, path), tt.file) || !bytes.Equal(read(t, path+"-wal"), tt.log) {
					t.Error("something was changed")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if n := number(t, db, "SELECT n FROM t"); n != tt.want {
				t.Errorf("the database has %d, want %d", n, tt.want)
			}
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// unstamped is a database to which no stamp was ever given.
func unstamped(file []byte) []byte {
	file = bytes.Clone(file)
	copy(file[60:64], make([]byte, 4))
	copy(file[68:72], make([]byte, 4))
	return file
}

// backedUp is what SQLite's .backup makes of a database: the same pages, and its schema cookie is
// 1.
func backedUp(file []byte) []byte {
	file = bytes.Clone(file)
	copy(file[40:44], []byte{0, 0, 0, 1})
	return file
}

// malformed has a table whose one page, which is not in the log, is damaged.
func malformed(file []byte) []byte {
	return append(file[:8192:8192], bytes.Repeat([]byte{0xa5}, len(file)-8192)...)
}

// TestLogInUse: the log of a database that another process has open is not looked at, however it
// looks.
func TestLogInUse(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "test.db")
	db := open(t, "sqlite:"+path)
	exec(t, db, "CREATE TABLE t (n BIGINT)")
	exec(t, db, "PRAGMA application_id = 7") // which no commit of the log has followed
	exec(t, db, "PRAGMA wal_checkpoint(TRUNCATE)")
	exec(t, db, "PRAGMA user_version = 9")
	exec(t, db, "PRAGMA application_id = 8")
	other := open(t, "sqlite:"+path)
	if n := number(t, other, "SELECT count(*) FROM t"); n != 0 {
		t.Errorf("read %d", n)
	}
}

// TestLogNextToRepackedCopy: a copy that VACUUM made has the stamp of the database, and its rows on
// other pages. The log of the very run in which it was made is not replayed into it.
func TestLogNextToRepackedCopy(t *testing.T) {
	t.Parallel()
	path, backup := filepath.Join(t.TempDir(), "test.db"), filepath.Join(t.TempDir(), "backup.db")
	db := open(t, "sqlite:"+path)
	exec(t, db, "CREATE TABLE gone (n BIGINT)")
	exec(t, db, "CREATE TABLE t (n BIGINT)")
	exec(t, db, "CREATE TABLE u (n BIGINT)")
	exec(t, db, "INSERT INTO t VALUES (0)")
	exec(t, db, "DROP TABLE gone")
	if err := inTx(t, db, "INSERT INTO u VALUES (1000)"); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db = open(t, "sqlite:"+path)
	for range 2 {
		if err := inTx(t, db, "UPDATE t SET n = n + 1"); err != nil {
			t.Fatal(err)
		}
		exec(t, db, "VACUUM INTO '"+backup+"'")
		write(t, path+".copy", read(t, backup))
		write(t, path+".copy-wal", read(t, path+"-wal"))
		if copied, err := sqldb.Open(t.Context(), "sqlite:"+path+".copy", discard()); !errors.Is(err, sqldb.ErrURL) {
			t.Errorf("got %v, and the copy has %d", err, number(t, copied, "SELECT n FROM t"))
		}
		if err := os.Remove(backup); err != nil {
			t.Fatal(err)
		}
	}
}
